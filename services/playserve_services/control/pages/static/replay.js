// Replays a recording frame by frame; each is one small picture.
"use strict";
(() => {
  const root = document.querySelector("[data-replay]");
  if (!root) return;
  const part = (name) => root.querySelector(`[data-${name}]`);
  const image = part("image"), play = part("play"), seek = root.querySelector("#seek"), last = Number(root.dataset.steps) - 1;
  const actions = part("actions").content.textContent.split("\n");
  const EVERY_MS = 1000 / 15;
  let at = Number(seek.value), playing = false;

  const load = (index) => new Promise((resolve) => {
    const next = new Image();
    next.onload = () => resolve(next.src);
    next.onerror = () => resolve("");
    next.src = `${root.dataset.replay}${index}.png`;
  });

  function show(index, source) {
    at = index;
    image.src = source || `${root.dataset.replay}${index}.png`;
    part("step").textContent = index;
    part("action").textContent = actions[index] || "";
    seek.value = index;
  }

  function set(value) {
    playing = value;
    play.textContent = playing ? "Pause" : "Play";
  }

  async function run() {
    while (playing && at < last) {
      const started = performance.now(), index = at + 1, source = await load(index);
      if (!playing || !source) break;
      await new Promise((resolve) => setTimeout(resolve, Math.max(0, EVERY_MS - (performance.now() - started))));
      if (playing) show(index, source);
    }
    set(false);
  }

  play.addEventListener("click", () => {
    if (!playing && at >= last) show(0);
    set(!playing);
    if (playing) run();
  });
  const step = (by) => { set(false); show(Math.min(last, Math.max(0, at + by))); };
  part("back").addEventListener("click", () => step(-1));
  part("next").addEventListener("click", () => step(1));
  seek.addEventListener("input", () => { set(false); show(Number(seek.value)); });
  part("controls").hidden = false;
  root.dataset.ready = "yes";
})();
