// A blind listening test: volume check, trials, file of answers. The browser stores the answers until they are saved, so a reload
// resumes the test.
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
  const storageKey = () => `soundmill listening test ${content.test} ${rater}`;
  const store = () => {
    try {
      localStorage.setItem(storageKey(), JSON.stringify(answers));
    } catch {
      stored = false;
    }
  };
  const restore = () => {
    try {
      const saved = JSON.parse(localStorage.getItem(storageKey()) || "[]");
      return Array.isArray(saved) ? saved : [];
    } catch {
      return [];
    }
  };
  addEventListener("beforeunload", (event) => {
    if (!stored && answers.length) event.preventDefault();
  });

  // A button that plays a sound from the start, with its progress; `onEnd` is called when it ends.
  let playing = null;
  const player = (name, flac, onEnd = () => {}) => {
    const audio = new Audio(`data:audio/flac;base64,${flac}`);
    const button = make("button", { type: "button", className: "play", textContent: `▶ ${name}` });
    const bar = make("progress", { max: 1, value: 0 });
    button.addEventListener("click", () => {
      if (playing) playing.pause();
      playing = audio;
      audio.currentTime = 0;
      audio.play().catch(() => {});
    });
    audio.addEventListener("timeupdate", () => (bar.value = audio.duration ? audio.currentTime / audio.duration : 0));
    audio.addEventListener("ended", () => {
      bar.value = 1;
      onEnd();
    });
    audio.addEventListener("error", () => button.after(make("p", { textContent: "This browser cannot play this sound." })));
    return make("div", { className: "player" }, button, bar);
  };

  const welcome = () => {
    const number = make("input", { type: "number", id: "rater", min: 1, max: 10000, step: 1, required: true });
    const beeps = make("input", { type: "number", id: "beeps", min: 1, max: 99, step: 1, required: true });
    const note = make("p", { className: "hot", role: "alert" });
    const form = make(
      "form",
      {},
      make("p", { textContent: "Use headphones in a quiet room. Set the volume now and do not change it until the end." }),
      make("p", { textContent: `There are ${content.orders[0].length} trials. Play each sound to its end at least once before you answer.` }),
      make("label", {}, "Your rater number ", number),
      make("p", { textContent: "Play the beeps. Each is softer than the one before; turn the volume up until you hear the last one." }),
      player("Beeps", content.check),
      make("label", {}, "How many beeps do you hear? ", beeps),
      note,
      make("button", { type: "submit", className: "next", textContent: "Start" }),
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (Number(beeps.value) !== content.beeps) {
        note.textContent = "That is not the number of beeps. Turn the volume up, play the beeps again and count again.";
        return;
      }
      if (playing) playing.pause();
      rater = Number(number.value);
      answers = restore();
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
      const choose = () => {
        slider.className = "";
        chosen.textContent = slider.value;
        update(question.name, Number(slider.value));
      };
      for (const event of ["input", "change", "pointerup"]) slider.addEventListener(event, choose); // 50 must be chosen, too
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
    const unplayed = new Set(names.keys());
    const button = make("button", { type: "button", className: "next", textContent: "Next", disabled: true });
    const update = (name, value) => {
      if (name) given[name] = value;
      button.disabled = unplayed.size > 0 || content.questions.some((question) => !(question.name in given));
    };
    const first = content.sounds[names[0]];
    const titles = names.length > 1 ? ["A", "B"] : ["Sound"];
    const players = names.map((name, index) =>
      player(titles[index], content.sounds[name].flac, () => {
        unplayed.delete(index);
        update();
      }),
    );
    if (first.reference) players.unshift(player("Reference", content.references[first.reference]));
    button.addEventListener("click", () => {
      if (playing) playing.pause();
      const ordered = Object.fromEntries(content.questions.map((question) => [question.name, given[question.name]]));
      answers.push({ sounds: names, ...ordered });
      store();
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
      save.after(make("p", { textContent: "Saved. Please send the file to the person who invited you. Thank you!" }));
    });
    panel(make("p", { textContent: "That was the last sound. Save your answers now." }), save);
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
