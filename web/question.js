// A question with yes and no, in a dialog of our own: ComfyUI's holds one at a time and drops a second.
import { el } from "./dom.js";
import { t } from "./texts.js";

let count = 0;

/**
 * Resolves to true for yes, to false for no and for Escape, to null once the signal `over` says that
 * nobody waits for an answer any more. At first the dialog itself has the focus: a key that was meant
 * for something else answers nothing.
 */
export function question(text, over = null) {
  const id = `lowtide-question-${(count += 1)}`;
  const button = (answer) =>
    el(
      "button",
      { type: "button", class: "lowtide-button", "data-key": answer, onclick: () => dialog.close(answer) },
      t(`question.${answer}`),
    );
  const dialog = el(
    "dialog",
    { class: "lowtide-dialog", tabindex: "-1", "aria-labelledby": id, "aria-describedby": `${id}-text` },
    el("h2", { id }, "Lowtide"),
    el("p", { id: `${id}-text` }, text),
    el("div", { class: "lowtide-controls" }, button("yes"), button("no")),
  );
  // Keys pressed here are not ComfyUI's shortcuts.
  dialog.addEventListener("keydown", (event) => event.stopPropagation());
  dialog.addEventListener("cancel", (event) => {
    event.preventDefault();
    dialog.close("no");
  });
  over?.addEventListener("abort", () => dialog.close("over"));
  document.body.append(dialog);
  dialog.showModal();
  dialog.focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "over" ? null : dialog.returnValue === "yes");
    });
  });
}
