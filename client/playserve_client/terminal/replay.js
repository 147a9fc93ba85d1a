(async () => {
  "use strict";
  // Runs once in each replay: everything is looked up inside the figure that holds this script.
  const root = document.currentScript.closest(".nhr");
  const part = (name) => root.querySelector(".nhr-" + name);
  const message = part("message"), view = part("screen"), seek = part("seek"), play = part("play"), speed = part("speed");
  const ROWS = 24, COLUMNS = 80, CELLS = ROWS * COLUMNS, REVERSE = 16, EVERY = 64;
  const game = JSON.parse(part("data").textContent);
  if (!("DecompressionStream" in window)) {
    message.textContent = "This browser cannot unpack the game (it lacks DecompressionStream); this is its first screen.";
    return;
  }

  let columns;
  try {
    columns = await unpack(game.data);
  } catch (error) {
    message.textContent = "The game could not be unpacked: " + error;
    return;
  }
  const { frames, ends, cells, chars, colors, cursors, keys, scores, wholes } = columns;
  const nowChars = new Uint8Array(CELLS), nowColors = new Uint8Array(CELLS);
  const drawn = new Array(ROWS).fill(null);
  let at = -1, playing = false, clock = 0, carry = 0;

  // The layout is that of playserve_client.terminal.html: see its pack().
  async function unpack(text) {
    const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    const data = await new Response(stream).arrayBuffer();
    const [frames, changes] = new Uint32Array(data, 0, 2);
    let offset = 8;
    const take = (Type, count) => {
      const bytes = data.slice(offset, offset += count * Type.BYTES_PER_ELEMENT);
      return new Type(bytes);
    };
    const scores = take(Int32Array, frames), counts = take(Uint16Array, frames), cursors = take(Uint16Array, frames);
    const cells = take(Uint16Array, changes), keys = take(Uint8Array, frames);
    const chars = take(Uint8Array, changes), colors = take(Uint8Array, changes);
    const ends = new Uint32Array(frames), wholes = [];
    const allChars = new Uint8Array(CELLS), allColors = new Uint8Array(CELLS);
    for (let frame = 0, entry = 0; frame < frames; frame++) {
      let cell = 0;
      for (const end = entry + counts[frame]; entry < end; entry++) {
        cell = cells[entry] += cell; // what is stored is the distance from the change before
        allChars[cell] = chars[entry];
        allColors[cell] = colors[entry];
      }
      ends[frame] = entry;
      if (frame) scores[frame] += scores[frame - 1];
      if (frame % EVERY === 0) wholes.push([allChars.slice(), allColors.slice()]);
    }
    return { frames, ends, cells, chars, colors, cursors, keys, scores, wholes };
  }

  function load(frame) {
    let from = at;
    if (from < 0 || from > frame || frame - from > EVERY) {
      from = frame - frame % EVERY;
      const whole = wholes[from / EVERY];
      nowChars.set(whole[0]);
      nowColors.set(whole[1]);
    }
    for (let entry = ends[from]; entry < ends[frame]; entry++) {
      nowChars[cells[entry]] = chars[entry];
      nowColors[cells[entry]] = colors[entry];
    }
    at = frame;
  }

  function rowText(row) {
    let text = "";
    for (let cell = row * COLUMNS; cell < (row + 1) * COLUMNS; cell++) text += game.glyphs[nowChars[cell]];
    return text;
  }

  function drawRow(row, cursor) {
    const line = view.children[row], text = rowText(row);
    const state = text + nowColors.subarray(row * COLUMNS, (row + 1) * COLUMNS).join() + "@" + cursor;
    if (drawn[row] === state) return;
    drawn[row] = state;
    const runs = [];
    let style = null, from = 0;
    for (let column = 0; column <= COLUMNS; column++) {
      let next = null;
      if (column < COLUMNS) {
        const color = nowColors[row * COLUMNS + column], reverse = color >= REVERSE;
        // Black would hide what it writes.
        next = "nhr-c" + (color % REVERSE || (reverse ? 7 : 8)) + (reverse ? " nhr-r" : "");
        // A space looks the same in any colour.
        if (text[column] === " " && !reverse && column && style && !style.includes("nhr-r") &&
            !style.includes("nhr-cursor")) next = style;
        if (column === cursor) next += " nhr-cursor";
      }
      if (next !== style && column) {
        const run = document.createElement("i");
        run.className = style;
        run.textContent = text.slice(from, column);
        runs.push(run);
        from = column;
      }
      style = next;
    }
    line.replaceChildren(...runs);
  }

  function grouped(number) {
    return number.toLocaleString("en-US");
  }

  function show(frame) {
    frame = Math.max(0, Math.min(frames - 1, frame));
    load(frame);
    const cursor = cursors[frame];
    for (let row = 0; row < ROWS; row++) drawRow(row, Math.floor(cursor / COLUMNS) === row ? cursor % COLUMNS : -1);
    const step = "step " + grouped(game.first + frame) + " of " + grouped(game.total - 1);
    const key = game.names ? game.names[keys[frame]] : null;
    const score = game.scored ? "score " + grouped(scores[frame]) : "";
    part("step").textContent = step;
    if (score) part("score").textContent = score;
    if (key) {
      part("key").textContent = key[0];
      part("meaning").textContent = key[1];
    }
    seek.value = frame;
    seek.setAttribute("aria-valuetext", step + (score && ", " + score) + (key ? ", next key " + key.join(" ") : ""));
    if (!playing) {
      const lines = [0, ROWS - 2, ROWS - 1].map(rowText).map((line) => line.trim().replace(/\s+/g, " ")).filter(Boolean);
      view.setAttribute("aria-label", "Screen at " + step + ". " + lines.join(". "));
    }
  }

  function setPlaying(on) {
    if (on && !playing) {
      if (at >= frames - 1) show(0);
      carry = 0;
      clock = performance.now();
      requestAnimationFrame(tick);
    }
    playing = on;
    play.textContent = on ? "Pause" : "Play";
    if (!on) show(at);
  }

  function tick(now) {
    if (!playing) return;
    carry += Math.min(0.25, Math.max(0, now - clock) / 1000) * Number(speed.value);
    clock = now;
    const steps = Math.floor(carry);
    carry -= steps;
    if (steps) show(at + steps);
    if (at >= frames - 1) setPlaying(false);
    else requestAnimationFrame(tick);
  }

  function move(steps) {
    const from = at;
    setPlaying(false);
    show(from + steps);
  }

  function faster(by) {
    speed.selectedIndex = Math.max(0, Math.min(speed.options.length - 1, speed.selectedIndex + by));
  }

  const actions = {
    " ": () => setPlaying(!playing), ArrowRight: () => move(1), ArrowLeft: () => move(-1),
    ArrowUp: () => faster(1), ArrowDown: () => faster(-1), "+": () => faster(1), "-": () => faster(-1),
    Home: () => move(-frames), End: () => move(frames),
  };
  root.addEventListener("keydown", (event) => {
    const action = actions[event.key], tag = event.target.tagName;
    if (!action || event.ctrlKey || event.metaKey || event.altKey) return;
    if (tag === "SELECT" || (tag === "BUTTON" && event.key === " ")) return;
    action();
    event.preventDefault();
  });
  play.addEventListener("click", () => setPlaying(!playing));
  part("back").addEventListener("click", () => move(-1));
  part("next").addEventListener("click", () => move(1));
  seek.addEventListener("input", () => show(Number(seek.value)));

  seek.max = frames - 1;
  show(0);
  part("controls").hidden = false;
  root.dataset.ready = "yes";
})();
