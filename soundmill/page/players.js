// The players of a page: one sounds at a time, and another of the same row takes over at the same place. Without this script the
// browser's own players are as they are.
"use strict";
(() => {
  const players = [...document.querySelectorAll("figure audio")];
  const rowOf = (player) => player.closest("article") || player.closest("figure");
  // Those that are to be seen, as the page has them now: rows are sorted and hidden.
  const shown = () => [...document.querySelectorAll("figure audio")].filter((player) => player.offsetParent !== null);
  const inRow = (player) => shown().filter((other) => rowOf(other) === rowOf(player));
  const pictureOf = (player) => player.closest("figure").querySelector(".picture");
  let current = null;

  // Where a sound that begins takes over: at the place of the one before, where that is of its row and not at its end.
  const placeFor = (player) =>
    current && current !== player && rowOf(current) === rowOf(player) && !current.ended ? current.currentTime : null;

  const begin = (player, place = placeFor(player)) => {
    if (current && current !== player) current.pause();
    if (place !== null) player.currentTime = place;
    player.play().catch(() => {}); // paused before it began
  };

  const isShown = (player) => player !== null && player.offsetParent !== null;

  const beginFirst = () => {
    const [first] = shown();
    if (first) begin(first);
  };

  const toggle = () => {
    if (!isShown(current)) return beginFirst();
    if (current.paused) current.play().catch(() => {});
    else current.pause();
  };

  const seek = (seconds) => {
    if (current) current.currentTime = Math.min(Math.max(0, seconds), current.duration || 0);
  };

  // The same column of the next row, or of the one before.
  const move = (step) => {
    if (!isShown(current)) return beginFirst();
    const rows = [...new Set(shown().map(rowOf))];
    const row = rows[rows.indexOf(rowOf(current)) + step];
    if (!row) return;
    const column = (player) => [...rowOf(player).querySelectorAll("figure")].indexOf(player.closest("figure"));
    const there = shown().filter((player) => rowOf(player) === row);
    begin(there.find((player) => column(player) === column(current)) || there[0]);
    row.scrollIntoView({ block: "nearest" });
  };

  // The next column of the row, or the one before: there may be more than digits.
  const aside = (step) => {
    if (!isShown(current)) return beginFirst();
    const columns = inRow(current);
    const next = columns[columns.indexOf(current) + step];
    if (next) begin(next);
  };

  const repeat = (on) => {
    players.forEach((player) => (player.loop = on));
    document.querySelectorAll("input[name=repeat]").forEach((box) => (box.checked = on));
  };

  const follow = () => {
    if (!current) return;
    const cursor = pictureOf(current) && pictureOf(current).querySelector(".cursor");
    const seconds = Number(rowOf(current).dataset.seconds) || current.duration || 1;
    if (cursor) cursor.style.left = `${Math.min(100, (100 * current.currentTime) / seconds)}%`;
    if (!current.paused) requestAnimationFrame(follow);
  };

  for (const player of players) {
    player.addEventListener("play", () => {
      const place = placeFor(player);
      if (place !== null && Math.abs(player.currentTime - place) > 0.05) player.currentTime = place;
      if (current && current !== player) {
        current.pause();
        current.closest("figure").classList.remove("current");
      }
      current = player;
      player.closest("figure").classList.add("current");
      inRow(player).forEach((other) => (other.preload = "auto")); // so that the next one takes over at once
      follow();
    });
    player.addEventListener("seeked", () => player === current && follow());
    const picture = pictureOf(player);
    if (!picture) continue;
    picture.insertAdjacentHTML("beforeend", '<i class="cursor"></i>');
    picture.tabIndex = 0;
    picture.setAttribute("role", "button");
    picture.setAttribute("aria-label", `play ${player.closest("figure").querySelector("figcaption").textContent}`);
    picture.addEventListener("click", (event) => {
      if (current !== player) return begin(player);
      const seconds = Number(rowOf(player).dataset.seconds) || player.duration;
      seek((seconds * event.offsetX) / picture.clientWidth);
      if (player.paused) begin(player);
    });
  }

  const keys = {
    " ": toggle,
    ArrowLeft: () => seek(current && current.currentTime - 1),
    ArrowRight: () => seek(current && current.currentTime + 1),
    Home: () => seek(0),
    j: () => move(1),
    k: () => move(-1),
    l: () => aside(1),
    h: () => aside(-1),
    r: () => repeat(!(players[0] && players[0].loop)),
  };
  addEventListener(
    "keydown",
    (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || !players.length) return;
      if (event.target.matches("input:not([type=checkbox]), select, textarea")) return;
      const picture = event.target.matches(".picture") && event.target;
      if (picture && (event.key === "Enter" || event.key === " ")) {
        const player = picture.closest("figure").querySelector("audio");
        if (player === current) toggle();
        else begin(player);
      } else if (/^[1-9]$/.test(event.key)) {
        const row = rowOf(isShown(current) ? current : shown()[0] || players[0]);
        const columns = [...row.querySelectorAll("figure")].filter((figure) => figure.offsetParent !== null);
        const chosen = columns[event.key - 1] && columns[event.key - 1].querySelector("audio");
        if (chosen) begin(chosen);
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
