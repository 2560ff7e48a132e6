// Filter of the listening page: rows by words, label and score; columns by name.
"use strict";
(() => {
  const form = document.querySelector("form.filter");
  const list = document.querySelector("section.rows");
  const rows = [...list.children].map((article, place) => ({ article, place, ...JSON.parse(article.dataset.facts) }));
  const field = (name) => form.elements[name] || { value: "" };

  const fits = (row) => {
    const words = field("text").value.toLowerCase().split(/\s+/).filter(Boolean);
    const label = field("label").value;
    const value = row.scores[field("score").value];
    const low = field("low").value === "" ? -Infinity : Number(field("low").value);
    const high = field("high").value === "" ? Infinity : Number(field("high").value);
    return (
      words.every((word) => row.text.toLowerCase().includes(word)) &&
      (!label || row.labels.includes(label)) &&
      (!field("score").value || (value !== undefined && low <= value && value <= high))
    );
  };

  const update = () => {
    const key = field("score").value;
    const sign = { up: 1, down: -1 }[key && field("order").value] || 0;
    rows.forEach((row) => (row.article.hidden = !fits(row)));
    [...rows]
      .sort((a, b) => (sign && sign * ((a.scores[key] ?? Infinity) - (b.scores[key] ?? Infinity))) || a.place - b.place)
      .forEach((row) => list.append(row.article));
    const boxes = [...form.querySelectorAll("input[name=column]")];
    rows.forEach((row) =>
      row.article.querySelectorAll("figure").forEach((figure, column) => (figure.hidden = !boxes[column].checked)),
    );
    for (const name of ["low", "high", "order"]) if (form.elements[name]) form.elements[name].disabled = !key;
    const shown = rows.filter((row) => !row.article.hidden).length;
    form.querySelector("output").textContent = `${shown} of ${rows.length} rows`;
    for (const player of list.querySelectorAll("audio")) if (player.offsetParent === null) player.pause();
  };

  for (const event of ["input", "change"]) form.addEventListener(event, update);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  update();
})();
