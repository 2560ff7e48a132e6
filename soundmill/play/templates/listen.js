// Of each HTML component of sounds: its buttons are the events 'again', 'nearest', 'keep', 'vote'; a drag over a picture is 'mark'.
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-do]");
  if (button) trigger(button.dataset.do, { name: button.dataset.name });
});
let from = null;
const share = (event, picture) => {
  const box = picture.getBoundingClientRect();
  return Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
};
element.addEventListener("pointerdown", (event) => {
  const picture = event.target.closest("[data-marks] .picture");
  from = picture && { picture, share: share(event, picture) };
  if (picture) event.preventDefault(); // no dragging of the picture itself
});
addEventListener("pointerup", (event) => {
  if (!from) return;
  const ends = [from.share, share(event, from.picture)].sort((one, other) => one - other);
  const seconds = Number(from.picture.closest("article").dataset.seconds);
  from = null;
  if (ends[1] - ends[0] < 0.01) return;
  addEventListener("click", (click) => click.stopPropagation(), { capture: true, once: true });
  trigger("mark", { start: ends[0] * seconds, stop: ends[1] * seconds });
});
// What is new may be below the screen.
new MutationObserver(() => element.querySelector(".one")?.scrollIntoView({ block: "nearest" })).observe(element, {
  childList: true,
  subtree: true,
});
