// Builds elements without ever parsing HTML: names of models and files are hostile input.

/** `on*` properties are listeners, `class` and everything else attributes; strings become text. */
export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Text from outside, kept apart from the direction of what stands around it. */
export function name(text) {
  return el("bdi", {}, text);
}

/** A style sheet of our own in the page, for rules that change while it runs. */
export function ownSheet() {
  const sheet = new CSSStyleSheet();
  document.adoptedStyleSheets = [...document.adoptedStyleSheets, sheet];
  return sheet;
}

/** Calls `paint` once before the next frame, however often it is asked; never in a hidden tab. */
export function painter(paint) {
  let due = 0;
  const ask = () => {
    if (due || document.hidden) return;
    due = requestAnimationFrame(() => {
      due = 0;
      if (!document.hidden) paint();
    });
  };
  document.addEventListener("visibilitychange", ask);
  return ask;
}
