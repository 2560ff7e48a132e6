// Players of a page: one plays at a time, and another one of the same row continues at the same position. Without this script they
// are ordinary players of the browser.
"use strict";
(() => {
  const rowOf = (player) => player.closest("article") || player.closest("figure");
  // Visible players in their current order: the filter sorts and hides rows.
  const shown = () => [...document.querySelectorAll("figure audio")].filter((player) => player.offsetParent !== null);
  const inRow = (player) => shown().filter((other) => rowOf(other) === rowOf(player));
  const pictureOf = (player) => player.closest("figure").querySelector(".picture");
  let current = null;

  // Position at which a player starts: that of the current one, if it is in the same row and has not ended.
  const positionFor = (player) =>
    current && current !== player && current.isConnected && rowOf(current) === rowOf(player) && !current.ended ? current.currentTime : null;

  const start = (player, position = positionFor(player)) => {
    if (current && current !== player) current.pause();
    if (position !== null) player.currentTime = position;
    player.play().catch(() => {}); // paused before it started
  };

  const isShown = (player) => player !== null && player.offsetParent !== null;

  const startFirst = () => {
    const [first] = shown();
    if (first) start(first);
  };

  const toggle = () => {
    if (!isShown(current)) return startFirst();
    if (current.paused) current.play().catch(() => {});
    else current.pause();
  };

  const seek = (seconds) => {
    if (current) current.currentTime = Math.min(Math.max(0, seconds), current.duration || 0);
  };

  // Play the same column of the next or previous row.
  const move = (step) => {
    if (!isShown(current)) return startFirst();
    const rows = [...new Set(shown().map(rowOf))];
    const row = rows[rows.indexOf(rowOf(current)) + step];
    if (!row) return;
    const column = (player) => [...rowOf(player).querySelectorAll("figure")].indexOf(player.closest("figure"));
    const candidates = shown().filter((player) => rowOf(player) === row);
    start(candidates.find((player) => column(player) === column(current)) || candidates[0]);
    row.scrollIntoView({ block: "nearest" });
  };

  // Play the next or previous column: there may be more than nine.
  const moveColumn = (step) => {
    if (!isShown(current)) return startFirst();
    const columns = inRow(current);
    const next = columns[columns.indexOf(current) + step];
    if (next) start(next);
  };

  const repeat = (on) => {
    document.querySelectorAll("figure audio").forEach((player) => (player.loop = on));
    document.querySelectorAll("input[name=repeat]").forEach((box) => (box.checked = on));
  };

  const follow = () => {
    if (!current?.isConnected) return;
    const cursor = pictureOf(current) && pictureOf(current).querySelector(".cursor");
    const seconds = Number(rowOf(current).dataset.seconds) || current.duration || 1;
    if (cursor) cursor.style.left = `${Math.min(100, (100 * current.currentTime) / seconds)}%`;
    if (!current.paused) requestAnimationFrame(follow);
  };

  // Events of players do not bubble, but can be captured: also those of players that come later.
  const on = (name, act) =>
    document.addEventListener(name, ({ target }) => target.matches?.("figure audio") && act(target), true);
  on("play", (player) => {
    const position = positionFor(player);
    if (position !== null && Math.abs(player.currentTime - position) > 0.05) player.currentTime = position;
    if (current && current !== player) {
      current.pause();
      current.closest("figure")?.classList.remove("current");
    }
    current = player;
    player.closest("figure").classList.add("current");
    inRow(player).forEach((other) => (other.preload = "auto")); // so that switching is immediate
    follow();
  });
  on("seeked", (player) => player === current && follow());

  const prepare = (picture) => {
    const player = picture.closest("figure").querySelector("audio");
    if (!player) return;
    picture.insertAdjacentHTML("beforeend", '<i class="cursor"></i>');
    picture.tabIndex = 0;
    picture.setAttribute("role", "button");
    picture.setAttribute("aria-label", `play ${player.closest("figure").querySelector("figcaption").textContent}`);
    picture.addEventListener("click", (event) => {
      if (current !== player) return start(player);
      const seconds = Number(rowOf(player).dataset.seconds) || player.duration;
      seek((seconds * event.offsetX) / picture.clientWidth);
      if (player.paused) start(player);
    });
  };
  const prepareAll = () => document.querySelectorAll(".picture:not([role])").forEach(prepare);
  prepareAll();
  new MutationObserver(prepareAll).observe(document.body, { childList: true, subtree: true });

  const keys = {
    " ": toggle,
    ArrowLeft: () => seek(current && current.currentTime - 1),
    ArrowRight: () => seek(current && current.currentTime + 1),
    Home: () => seek(0),
    j: () => move(1),
    k: () => move(-1),
    l: () => moveColumn(1),
    h: () => moveColumn(-1),
    r: () => repeat(!shown()[0]?.loop),
  };
  addEventListener(
    "keydown",
    (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || !shown().length) return;
      if (event.target.matches("input:not([type=checkbox]), select, textarea")) return;
      const picture = event.target.matches(".picture") && event.target;
      if (picture && (event.key === "Enter" || event.key === " ")) {
        const player = picture.closest("figure").querySelector("audio");
        if (player === current) toggle();
        else start(player);
      } else if (/^[1-9]$/.test(event.key)) {
        const row = rowOf(isShown(current) ? current : shown()[0]);
        const columns = [...row.querySelectorAll("figure")].filter((figure) => figure.offsetParent !== null);
        const chosen = columns[event.key - 1] && columns[event.key - 1].querySelector("audio");
        if (chosen) start(chosen);
      } else if (keys[event.key] && (current || event.key === " " || event.key === "j" || event.key === "r")) {
        if (event.target.matches("input[type=checkbox], button, summary") && event.key === " ") return;
        keys[event.key]();
      } else return;
      event.preventDefault();
    },
    true,
  );
  document.querySelectorAll("input[name=repeat]").forEach((box) => box.addEventListener("change", () => repeat(box.checked)));
})();
