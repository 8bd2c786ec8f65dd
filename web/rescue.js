// Shows the question whether a node that is out of memory may run again, and sends the answer.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

async function confirmed(message) {
  const dialog = app.extensionManager?.dialog;
  if (dialog?.confirm) {
    return (await dialog.confirm({ title: "Lowtide", message })) === true;
  }
  return window.confirm(message);
}

app.registerExtension({
  name: "lowtide.rescue",
  setup() {
    api.addEventListener("lowtide.rescue", async ({ detail }) => {
      const yes = await confirmed(detail.text);
      await api.fetchApi("/lowtide/rescue", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ question: detail.question, yes }),
      });
    });
  },
});
