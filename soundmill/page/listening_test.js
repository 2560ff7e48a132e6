// A blind listening test: a volume check, one trial after the other, and a file of answers. Answers are kept in this browser until
// they are saved, so a reload goes on where it was.
"use strict";
(() => {
  const content = JSON.parse(document.getElementById("content").textContent);
  const stage = document.getElementById("stage");
  let rater = null;
  let answers = [];
  let stored = true;

  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };
  const panel = (...children) => {
    const shown = make("section", { className: "panel" }, ...children);
    stage.replaceChildren(shown);
    scrollTo(0, 0);
    return shown;
  };
  const place = () => `soundmill listening test ${content.test} ${rater}`;
  const keep = () => {
    try {
      localStorage.setItem(place(), JSON.stringify(answers));
    } catch {
      stored = false;
    }
  };
  const recall = () => {
    try {
      const kept = JSON.parse(localStorage.getItem(place()) || "[]");
      return Array.isArray(kept) ? kept : [];
    } catch {
      return [];
    }
  };
  addEventListener("beforeunload", (event) => {
    if (!stored && answers.length) event.preventDefault();
  });

  // A button that plays a sound from its beginning, with how far it is; `heard` is called when it has come to its end.
  let sounding = null;
  const player = (name, flac, heard = () => {}) => {
    const audio = new Audio(`data:audio/flac;base64,${flac}`);
    const button = make("button", { type: "button", className: "play", textContent: `▶ ${name}` });
    const bar = make("progress", { max: 1, value: 0 });
    button.addEventListener("click", () => {
      if (sounding) sounding.pause();
      sounding = audio;
      audio.currentTime = 0;
      audio.play().catch(() => {});
    });
    audio.addEventListener("timeupdate", () => (bar.value = audio.duration ? audio.currentTime / audio.duration : 0));
    audio.addEventListener("ended", () => {
      bar.value = 1;
      heard();
    });
    audio.addEventListener("error", () => button.after(make("p", { textContent: "This sound cannot be played by this browser." })));
    return make("div", { className: "player" }, button, bar);
  };

  const welcome = () => {
    const number = make("input", { type: "number", id: "rater", min: 1, max: 10000, step: 1, required: true });
    const beeps = make("input", { type: "number", id: "beeps", min: 1, max: 99, step: 1, required: true });
    const note = make("p", { className: "hot", role: "alert" });
    const form = make(
      "form",
      {},
      make("p", { textContent: "Use headphones, in a quiet room. Set the volume now, and leave it as it is until the end." }),
      make("p", { textContent: `You will hear ${content.orders[0].length} trials. Each sound must be heard to its end once.` }),
      make("label", {}, "Your number, as you were told ", number),
      make("p", { textContent: "Play the beeps, which grow softer, and turn the volume up until you hear the last one." }),
      player("the beeps", content.check),
      make("label", {}, "How many beeps are there? ", beeps),
      note,
      make("button", { type: "submit", className: "next", textContent: "Begin" }),
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (Number(beeps.value) !== content.beeps) {
        note.textContent = "There are more or fewer. Turn the volume up, play the beeps again and count once more.";
        return;
      }
      if (sounding) sounding.pause();
      rater = Number(number.value);
      answers = recall();
      next();
    });
    panel(form);
  };

  const choices = (question, update) => {
    const group = make("fieldset", {}, make("legend", { textContent: question.text }));
    const chosen = make("output");
    const options = content.compare
      ? [["first", "A"], ["same", "no difference"], ["second", "B"]]
      : question.words.map((word, index) => [index + 1, `${index + 1} ${word}`]);
    if (!content.compare && content.scale === 100) {
      const slider = make("input", { type: "range", min: 1, max: 100, step: 1, value: 50, name: question.name, className: "unset" });
      const take = () => {
        slider.className = "";
        chosen.textContent = slider.value;
        update(question.name, Number(slider.value));
      };
      for (const event of ["input", "change", "pointerup"]) slider.addEventListener(event, take); // 50 too must be chosen
      group.append(make("div", { className: "ends" }, make("span", { textContent: `1 ${question.words[0]}` }), chosen,
        make("span", { textContent: `100 ${question.words[4]}` })), slider);
      return group;
    }
    for (const [value, text] of options) {
      const button = make("input", { type: "radio", name: question.name, value });
      button.addEventListener("change", () => update(question.name, value));
      group.append(make("label", { className: "choice" }, button, ` ${text}`));
    }
    return group;
  };

  const next = () => {
    const order = content.orders[(rater - 1) % content.orders.length];
    if (answers.length >= order.length) return finish();
    const names = order[answers.length];
    const given = {};
    const unheard = new Set(names.keys());
    const button = make("button", { type: "button", className: "next", textContent: "Next", disabled: true });
    const update = (name, value) => {
      if (name) given[name] = value;
      button.disabled = unheard.size > 0 || content.questions.some((question) => !(question.name in given));
    };
    const first = content.sounds[names[0]];
    const titles = names.length > 1 ? ["A", "B"] : ["the sound"];
    const players = names.map((name, index) =>
      player(titles[index], content.sounds[name].flac, () => {
        unheard.delete(index);
        update();
      }),
    );
    if (first.reference) players.unshift(player("the reference", content.references[first.reference]));
    button.addEventListener("click", () => {
      if (sounding) sounding.pause();
      const ordered = Object.fromEntries(content.questions.map((question) => [question.name, given[question.name]]));
      answers.push({ sounds: names, ...ordered });
      keep();
      next();
    });
    panel(
      make("p", { className: "soft", textContent: `${answers.length + 1} of ${order.length}` }),
      make("progress", { className: "whole", max: order.length, value: answers.length }),
      ...(first.text ? [make("p", { className: "text", textContent: `“${first.text}”` })] : []),
      ...players,
      ...content.questions.map((question) => choices(question, update)),
      button,
    );
  };

  const finish = () => {
    const document_ = { format: 1, test: content.test, rater, answers };
    const save = make("button", { type: "button", className: "next", textContent: "Save my answers" });
    save.addEventListener("click", () => {
      const address = URL.createObjectURL(new Blob([JSON.stringify(document_, null, 1) + "\n"], { type: "application/json" }));
      make("a", { href: address, download: `answers-${content.test}-${rater}.json` }).click();
      stored = true;
      save.after(make("p", { textContent: "Saved. Send the file to whoever invited you. Thank you!" }));
    });
    panel(make("p", { textContent: "That was the last sound." }), save);
  };

  addEventListener("keydown", (event) => {
    if (event.target.matches("input[type=number], input[type=range]")) return;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const button = (selector) => stage.querySelector(selector);
    if (event.key === " " && !event.target.matches("button, input")) button(".play")?.click();
    else if (event.key === "Enter" && !event.target.matches("button, input")) button(".next:not(:disabled)")?.click();
    else if (/^[1-5]$/.test(event.key)) {
      const open = [...stage.querySelectorAll("fieldset")].find((group) => !group.querySelector(":checked"));
      open?.querySelectorAll("input[type=radio]")[event.key - 1]?.click();
      return;
    } else return;
    event.preventDefault();
  });
  welcome();
})();
