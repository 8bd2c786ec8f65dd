// View: the models that are loaded, where their bytes are, and a way to unload each.
import { bytes, clean, clock } from "../format.js";
import { t } from "../texts.js";

export const models = {
  id: "models",
  topics: ["models", "connection"],

  data: ({ store }) => store.state.models,

  table({ store, actions }) {
    const columns = ["name", "kind", "device", "size", "onDevice", "streamed", "fp8", "pinned", "onHost", "lastUsed"];
    const numbers = new Set(["size", "onDevice", "streamed", "fp8", "pinned", "onHost"]);
    return {
      caption: t("models.caption"),
      empty: t("models.empty"),
      actions: t("models.actions"),
      columns: columns.map((key) => ({
        title: t(`models.${key}`),
        number: numbers.has(key),
        outside: key === "name",
      })),
      rows: store.state.models.map((model) => ({
        key: String(model.id),
        cells: [
          clean(model.name, 60),
          clean(t(`kinds.${model.kind}`), 20),
          clean(model.device, 20),
          bytes(model.size),
          bytes(model.on_device),
          bytes(model.streamed),
          bytes(model.fp8),
          bytes(model.pinned),
          bytes(model.on_host),
          clock(model.last_used),
        ],
        actions: [
          {
            label: t("models.unload"),
            about: t("models.unloadThis", { name: clean(model.name, 60) }),
            off: !model.can_unload,
            run: () => actions.unload(model.id),
          },
        ],
      })),
    };
  },
};
