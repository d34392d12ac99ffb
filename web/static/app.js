// Small conveniences. Everything works without this file; it makes it quicker.
"use strict";

const on = (type, selector, act) =>
  document.addEventListener(type, (event) => {
    const element = event.target.closest?.(selector);
    if (element) act(element, event);
  });

// "3 min ago" stays true.
const STEPS = [[60, 1, "s"], [3600, 60, "min"], [86400, 3600, "h"], [Infinity, 86400, "d"]];
const ago = (seconds) => {
  if (seconds < 5) return "now";
  const [, unit, name] = STEPS.find(([limit]) => seconds < limit);
  return `${Math.floor(seconds / unit)} ${name} ago`;
};
const tick = () => {
  if (document.hidden) return;
  for (const time of document.querySelectorAll("time[datetime]")) {
    const text = ago((Date.now() - Date.parse(time.dateTime)) / 1000);
    if (time.textContent !== text) time.textContent = text;
  }
};
setInterval(tick, 10_000);
document.addEventListener("visibilitychange", tick);

on("click", "[data-copy]", async (button) => {
  const source = document.getElementById(button.dataset.copy);
  await navigator.clipboard.writeText(source.textContent.trim());
  const label = button.querySelector("span");
  label.textContent = "Copied";
  setTimeout(() => (label.textContent = "Copy"), 1500);
});

on("click", "[data-theme-toggle]", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("theme", root.dataset.theme);
  document.dispatchEvent(new Event("theme"));
});

on("change", "form[data-autosubmit] select", (field) => field.form.requestSubmit());
on("submit", "form[data-confirm]", (form, event) => {
  if (!confirm(form.dataset.confirm)) event.preventDefault();
});
on("submit", "form[method=post]", (form, event) => {
  // A second click must not submit a second job.
  if (event.defaultPrevented) return;
  setTimeout(() => form.querySelectorAll("button").forEach((b) => (b.disabled = true)));
});
addEventListener("pageshow", () =>
  document.querySelectorAll("form[method=post] button").forEach((b) => (b.disabled = false)));

// The log follows its end while the reader stands at its end.
const log = document.getElementById("log");
if (log) {
  const live = document.getElementById("live");
  const MOST = 400_000; // characters kept on the page; the whole log is one link away
  log.scrollTop = log.scrollHeight;
  live?.addEventListener("log", ({ detail }) => {
    const piece = JSON.parse(detail.data);
    const attempt = log.dataset.attempt;
    if (attempt && attempt !== piece.attempt) {
      if (log.dataset.pinned !== undefined) return; // reading an earlier attempt
      log.textContent = "";
      log.dataset.offset = 0;
    }
    log.dataset.attempt = piece.attempt;
    const known = Number(log.dataset.offset);
    if (piece.offset < known) return; // already here
    const follow = log.scrollTop + log.clientHeight >= log.scrollHeight - 24;
    log.append(piece.text);
    log.dataset.offset = piece.next_offset;
    if (log.textContent.length > MOST) log.textContent = log.textContent.slice(-MOST / 2);
    if (follow) log.scrollTop = log.scrollHeight;
  });
}

// Say so when what is shown may be old.
const status = document.getElementById("live-status");
if (status) {
  document.addEventListener("htmx:sse:error", () => (status.hidden = false));
  document.addEventListener("htmx:sse:after:connection", () => (status.hidden = true));
}
