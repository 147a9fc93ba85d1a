// Fetches the page again every few seconds, and puts its parts marked data-live in place of those that are shown.
"use strict";
(() => {
  const EVERY_MS = 5000;
  const control = document.querySelector("[data-live-control]");
  const regions = [...document.querySelectorAll("[data-live][id]")];
  if (!control || !regions.length) return;
  const status = control.querySelector("[data-live-status]"), pause = control.querySelector("[data-live-pause]");
  const FOCUSABLE = "a[href], button, input, select, summary, [tabindex]";
  let paused = false, timer = 0;

  const say = (text) => { if (status.textContent !== text) status.textContent = text; };

  // What a person has opened, scrolled or focused stays so.
  function replace(shown, fresh) {
    const open = new Set([...shown.querySelectorAll("details[open][id]")].map((item) => item.id));
    const focused = shown.contains(document.activeElement) ? document.activeElement : null;
    if (focused && focused.matches("input, select")) return;
    const at = focused ? [...shown.querySelectorAll(FOCUSABLE)].indexOf(focused) : -1;
    const name = focused ? focused.getAttribute("href") : null;
    const scrolled = [...shown.querySelectorAll(".scroll, pre")].map((item) => [item.scrollLeft, item.scrollTop]);
    shown.replaceChildren(...[...fresh.childNodes].map((node) => document.importNode(node, true)));
    for (const item of shown.querySelectorAll("details[id]")) item.open = open.has(item.id);
    shown.querySelectorAll(".scroll, pre").forEach((item, index) => {
      if (scrolled[index]) [item.scrollLeft, item.scrollTop] = scrolled[index];
    });
    if (focused) {
      const all = [...shown.querySelectorAll(FOCUSABLE)];
      const next = all.find((item) => name && item.getAttribute("href") === name) || all[Math.min(at, all.length - 1)];
      if (next) next.focus({ preventScroll: true });
    }
  }

  async function update() {
    timer = 0;
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" }, cache: "no-store" });
      if (answer.status === 401) { say("Your session is over: open the page again."); return; }
      if (!answer.ok) throw new Error(String(answer.status));
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      if (paused) return;
      for (const region of regions) {
        const found = fresh.getElementById(region.id);
        if (found) replace(region, found);
      }
      say("Updates every 5 s.");
    } catch {
      say("The control plane does not answer; trying again.");
    }
    plan();
  }

  function plan() {
    if (!paused && !timer && !document.hidden) timer = setTimeout(update, EVERY_MS);
  }

  pause.addEventListener("click", () => {
    paused = !paused;
    clearTimeout(timer);
    timer = 0;
    pause.setAttribute("aria-pressed", String(paused));
    pause.textContent = paused ? "Go on updating" : "Pause updates";
    say(paused ? "Paused." : "Updates every 5 s.");
    if (!paused) update();
  });
  document.addEventListener("visibilitychange", plan);
  control.hidden = false;
  plan();
})();
