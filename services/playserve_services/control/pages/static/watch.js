// Draws what a watched session sees, and over it what it does.
"use strict";
(() => {
  const root = document.querySelector("[data-watch]");
  if (!root) return;
  const part = (name) => root.querySelector(`[data-${name}]`);
  const view = part("view"), image = part("image"), overlay = part("overlay"), terminal = part("terminal");
  const SVG = "http://www.w3.org/2000/svg";
  const DIRECTIONS = { UP: [0, -1], DOWN: [0, 1], LEFT: [-1, 0], RIGHT: [1, 0] };
  const BUTTONS = ["left", "middle", "right", "back", "forward"];
  let paused = false, drawn = 0;

  function make(name, attributes, text) {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    return element;
  }

  function arrow(x, y, dx, dy) {
    const length = Math.hypot(dx, dy);
    if (length < 0.5) return;
    const [ux, uy] = [dx / length, dy / length], [ex, ey] = [x + dx, y + dy];
    const line = { x1: x, y1: y, x2: ex, y2: ey };
    const points = [[ex + 2.4 * ux, ey + 2.4 * uy], [ex - 1.6 * uy, ey + 1.6 * ux], [ex + 1.6 * uy, ey - 1.6 * ux]];
    overlay.append(make("line", { class: "halo", ...line }), make("line", { class: "motion", ...line }),
      make("polygon", { class: "head", points: points.map((point) => point.join(",")).join(" ") }));
  }

  function keys(names, width, height) {
    let x = 2.5;
    for (const name of names.slice(0, 10)) {
      const wide = Math.max(7, 2.6 * name.length + 4);
      if (x + wide > width) break;
      const group = make("g", { class: "key" });
      group.append(make("rect", { x, y: height - 9.5, width: wide, height: 7, rx: 1.5 }),
        make("text", { x: x + wide / 2, y: height - 4.6 }, name));
      overlay.append(group);
      x += wide + 1.2;
    }
  }

  const short = (code) => code.replace(/^(Key|Digit|Arrow)(?=.)/, "");

  function words(action) {
    if (action.name !== undefined) return action.name;
    const said = action.keys.map(short).concat(action.buttons.map((number) => `${BUTTONS[number] || number} button`));
    if (action.dx || action.dy) said.push(`mouse ${action.dx}, ${action.dy} px`);
    if (action.scroll) said.push(`scroll ${action.scroll}`);
    return said.join(" + ") || "nothing";
  }

  function drawAction(action, width, height) {
    if (action.name !== undefined) {
      keys([action.name], width, height);
      let dx = 0, dy = 0;
      for (const [name, [x, y]] of Object.entries(DIRECTIONS)) {
        if (action.name.toUpperCase().includes(name)) { dx += 10 * x; dy += 10 * y; }
      }
      arrow(width / 2, height / 2, dx, dy);
      return;
    }
    keys(action.keys.map(short), width, height);
    const scale = 30 / Math.max(1, action.reach);
    overlay.append(make("circle", { class: action.buttons.length ? "pressed" : "pointer", cx: width / 2, cy: height / 2, r: 1.6 }));
    arrow(width / 2, height / 2, action.dx * scale, action.dy * scale);
  }

  function drawImage(step) {
    const width = 100, height = (100 * step.height) / step.width;
    overlay.setAttribute("viewBox", `0 0 ${width} ${height}`);
    overlay.replaceChildren();
    image.src = step.image;
    image.width = step.width;
    image.height = step.height;
    if (step.actions.length) drawAction(step.actions[0], width, height);
    view.hidden = false;
    terminal.hidden = true;
  }

  function drawTerminal({ rows, cursor }) {
    terminal.replaceChildren(...rows.flatMap((runs, row) => {
      let column = 0;
      const line = runs.flatMap(([text, color, reverse]) => {
        const pieces = [], at = row === cursor[0] ? cursor[1] - column : -1;
        const parts = at >= 0 && at < text.length ? [text.slice(0, at), text.slice(at, at + 1), text.slice(at + 1)] : [text];
        parts.forEach((piece, index) => {
          if (!piece) return;
          const run = document.createElement("i");
          run.className = `c${color}${reverse ? " reverse" : ""}${parts.length > 1 && index === 1 ? " cursor" : ""}`;
          run.textContent = piece;
          pieces.push(run);
        });
        column += text.length;
        return pieces;
      });
      return [...line, document.createTextNode("\n")];
    }));
    terminal.hidden = false;
    view.hidden = true;
  }

  function show(step) {
    part("wait").hidden = true;
    if (step.image) drawImage(step);
    else if (step.terminal) drawTerminal(step.terminal);
    part("action").textContent = step.actions.length ? step.actions.map(words).join(", then ") : "no answer";
    part("seq").textContent = step.seq;
    part("episode").textContent = step.episode;
    if (step.version) part("version").textContent = step.version;
    part("ms").textContent = step.ms === undefined ? "–" : `${step.ms} ms, in a batch of ${step.batch}`;
    part("value").textContent = step.value === undefined ? "–" : step.value;
    root.dataset.drawn = ++drawn;
  }

  const stream = new EventSource(root.dataset.watch);
  const status = part("status"), pause = part("pause");
  stream.addEventListener("step", (event) => { if (!paused) show(JSON.parse(event.data)); });
  stream.addEventListener("over", (event) => {
    stream.close();
    status.textContent = JSON.parse(event.data).why;
    root.dataset.over = "yes";
  });
  stream.addEventListener("open", () => { status.textContent = "Watching."; });
  stream.addEventListener("error", () => {
    status.textContent = stream.readyState === EventSource.CLOSED ? "The view was refused; open the page again to see why." : "The control plane does not answer; trying again.";
  });
  pause.addEventListener("click", () => {
    paused = !paused;
    pause.setAttribute("aria-pressed", String(paused));
    pause.textContent = paused ? "Go on" : "Pause";
  });
})();
