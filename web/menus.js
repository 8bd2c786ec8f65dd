// Entries of the menus of nodes and of the canvas, by the frontend's own hooks where it has them.
import { bytes, clean, seconds } from "./format.js";
import { t } from "./texts.js";

const KINDS = {
  MODEL: ["model"],
  CLIP: ["clip"],
  VAE: ["vae"],
  CONTROL_NET: ["control"],
  DIFFUSERS_PIPELINE: ["pipeline"],
};

/** The loaded models that a node may have to do with, by the types of its sockets. */
export function modelsOf(node, models) {
  const sockets = [...(node.outputs ?? []), ...(node.inputs ?? [])];
  const kinds = new Set(sockets.flatMap((socket) => KINDS[socket?.type] ?? []));
  return models.filter((model) => kinds.has(model.kind) && model.can_unload);
}

export class Menus {
  constructor({ store, actions, badges, panel, fit }) {
    Object.assign(this, { store, actions, badges, panel, fit });
  }

  forNode(node) {
    const items = [{ content: t("menu.cost"), callback: () => this._cost(node) }];
    const models = modelsOf(node, this.store.state.models);
    if (models.length) items.push(this._unload(models));
    return items;
  }

  forCanvas() {
    return [
      { content: t("menu.free"), callback: () => void this.actions.free("vram") },
      { content: t("menu.check"), callback: () => void this.fit.check() },
      { content: t("menu.panel"), callback: () => void this.panel.toggle() },
    ];
  }

  _unload(models) {
    const entry = (model, label) => ({
      content: label,
      callback: () => void this.actions.unload(model.id),
    });
    const label = (model) => `${plain(model.name)} (${bytes(model.on_device)})`;
    if (models.length === 1) {
      return entry(models[0], t("menu.unloadOne", { name: label(models[0]) }));
    }
    const options = models.map((model) => entry(model, label(model)));
    return { content: t("menu.unload"), has_submenu: true, submenu: { options } };
  }

  _cost(node) {
    const cost = this.badges.costOf(node);
    if (!cost) {
      this.actions.toast("info", t("menu.noCost", { node: clean(node.title, 60) }));
      return;
    }
    const text = t("menu.costs", {
      node: clean(node.title, 60),
      peak: bytes(cost.peak),
      time: seconds(cost.seconds),
    });
    this.actions.toast("info", text);
    void this.panel.open("timeline", cost);
  }
}

/** A name without what classic menus would read as HTML: they set it as such. */
function plain(text) {
  return clean(text, 40).replace(/[<>&"'`]/g, "_");
}

/** For frontends without the menu hooks: LiteGraph's own, with what others have put there kept. */
export function classicMenus(app, menus) {
  const canvas = app.canvas;
  const others = canvas.getExtraMenuOptions;
  canvas.getExtraMenuOptions = function (...args) {
    return [...(others?.apply(this, args) ?? []), null, ...menus.forCanvas()];
  };
}

/** The same for the nodes of a type. */
export function classicNodeMenu(type, menus) {
  const others = type.prototype.getExtraMenuOptions;
  type.prototype.getExtraMenuOptions = function (canvas, options, ...rest) {
    const made = others?.call(this, canvas, options, ...rest);
    options.push(null, ...menus.forNode(this));
    return made;
  };
}
