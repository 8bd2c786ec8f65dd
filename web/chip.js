// The chip in the top bar: ComfyUI's own action button where there are such, else an element of ours
// before the top bar's settings, else one at a place of its own that can be dragged.
import { chipBars, chipLabel, chipTooltip, pressure } from "./chip_text.js";
import { el, ownSheet, painter } from "./dom.js";
import * as keys from "./settings.js";
import { t } from "./texts.js";

const CLASS = "lowtide-chip";
const TICK = "lowtideChip"; // a key of the frontend's reactive store, which the getters read
const PLACE = "lowtide.chip.place";
const PATIENCE = 3; // looks at the top bar before the chip goes to a place of its own
const NARROW_PX = 1440;
const NUDGE_PX = 16;

/** Where a person has dragged the chip to, or null. */
function kept() {
  try {
    const place = JSON.parse(localStorage.getItem(PLACE));
    return place && Number.isFinite(place.x) && Number.isFinite(place.y) ? place : null;
  } catch {
    return null;
  }
}

export class Chip {
  constructor(app, store, open) {
    this.app = app;
    this.store = store;
    this.open = open;
    this.painted = 0;
    this._missed = 0;
    this._own = null;
    this._rule = null;
    this._vanished = false;
    this._narrow = window.matchMedia(`(max-width: ${NARROW_PX - 1}px)`);
    this._ask = painter(() => this._paint());
  }

  /** For `registerExtension`: a button whose text follows the reactive key. */
  button() {
    const chip = this;
    const follow = () => void chip.app.extensionManager?.[TICK];
    return {
      icon: "pi pi-microchip",
      class: CLASS,
      get label() {
        follow();
        return chip._wanted() ? chipLabel(chip.store, chip._shown(), t) : "";
      },
      get tooltip() {
        follow();
        return chipTooltip(chip.store, chip._shown(), t);
      },
      onClick: () => chip.open(),
    };
  }

  start() {
    const sheet = ownSheet();
    sheet.insertRule(`.${CLASS} {}`);
    this._rule = sheet.cssRules[0];
    this._all = document.getElementsByClassName(CLASS);
    this._sizes = new ResizeObserver(([entry]) => {
      this._vanished = entry.target === this._own && entry.contentRect.width === 0 && this._wanted();
      if (this._vanished) this.refresh();
    });
    this.store.on(["figures", "connection"], () => this.refresh());
    this._narrow.addEventListener("change", () => this.refresh());
    window.addEventListener("resize", () => this._floats() && this._setPlace(kept()));
    document.addEventListener("visibilitychange", () => this.refresh());
    this.refresh();
  }

  /**
   * Paint if something it shows has changed, and see that it has its place. Called with each sample:
   * while all is as it was, no layout is read and no frame asked for. `anew`: look for its place
   * even so.
   */
  refresh(anew = false) {
    if (!this._rule || document.hidden) return; // a setting was read before the page was ready
    if (anew || !this._settled()) this._place();
    const look = this._look();
    if (look.all !== this._last || this._own !== this._lastOwn) this._ask();
  }

  /** Put a chip that was dragged back where it first was. */
  resetPlace() {
    localStorage.removeItem(PLACE);
    if (this._own) this._setPlace(null);
  }

  _wanted() {
    return keys.setting(this.app, keys.CHIP_SHOW) !== false;
  }

  _shown() {
    const on = (id) => keys.setting(this.app, id) !== false;
    const compact = keys.setting(this.app, keys.CHIP_COMPACT);
    return {
      vram: on(keys.CHIP_VRAM),
      ram: on(keys.CHIP_RAM),
      peak: on(keys.CHIP_PEAK),
      bars: on(keys.CHIP_BARS),
      compact: compact === "always" || (compact !== "never" && this._narrow.matches),
    };
  }

  /** All that is to be seen of it; `all` is the same text for the same sight. */
  _look() {
    const wanted = this._wanted();
    const shown = this._shown();
    const level = this.store.connected ? pressure(this.store.state.devices) : "offline";
    const label = chipLabel(this.store, shown, t);
    const tooltip = chipTooltip(this.store, shown, t);
    const style = {
      ...chipBars(this.store, shown),
      display: wanted ? "" : "none",
      "--lowtide-pressure": `var(--lowtide-${level})`,
    };
    return { label, tooltip, style, all: JSON.stringify([label, tooltip, style]) };
  }

  _paint() {
    if (!this._rule) return;
    const look = this._look();
    this.painted += 1;
    if (look.all === this._last && this._own === this._lastOwn) return;
    this._last = look.all;
    this._lastOwn = this._own;
    for (const [name, value] of Object.entries(look.style)) {
      if (this._rule.style.getPropertyValue(name) !== value) {
        this._rule.style.setProperty(name, value, name.startsWith("--") ? "" : "important");
      }
    }
    const manager = this.app.extensionManager;
    if (manager) manager[TICK] = this.painted;
    if (this._own) {
      this._own.querySelector("span").textContent = look.label;
      this._own.title = look.tooltip;
      this._own.setAttribute("aria-label", look.tooltip);
    }
  }

  /** Whether the chip stands where it stood when its place was last looked for, and is seen there. */
  _settled() {
    if (!this._own) return this._all.length > 0;
    return this._own.isConnected && this._all.length === 1 && !this._vanished && !this._floats();
  }

  _floats() {
    return Boolean(this._own?.classList.contains("lowtide-floating"));
  }

  /** Keep exactly one chip in the page, at the best place there is now. */
  _place() {
    if ([...this._all].some((it) => it !== this._own)) {
      this._own?.remove();
      this._own = null;
      this._missed = 0;
      return;
    }
    if (this.app.extensionManager?.focusMode) return;
    const settings = this.app.menu?.settingsGroup?.element;
    // The group itself is not drawn while it is empty.
    if (settings?.isConnected && settings.parentElement.getClientRects().length) {
      this._own ??= this._make();
      if (this._own.nextSibling !== settings) settings.before(this._own);
      this._own.classList.remove("lowtide-floating");
      this._own.removeAttribute("style");
      this._missed = 0;
      return;
    }
    this._missed += 1;
    if (this._missed < PATIENCE) return void setTimeout(() => this.refresh(), 700);
    this._own ??= this._make();
    if (this._own.parentElement === document.body) return;
    document.body.append(this._own);
    this._own.classList.add("lowtide-floating");
    this._setPlace(kept());
  }

  _make() {
    const made = el(
      "button",
      { type: "button", class: CLASS, onclick: () => this._dragged || this.open() },
      el("i", { class: "pi pi-microchip", "aria-hidden": "true" }),
      el("span"),
    );
    made.addEventListener("pointerdown", (event) => this._drag(event));
    made.addEventListener("keydown", (event) => this._nudge(event));
    this._sizes.disconnect();
    this._sizes.observe(made);
    return made;
  }

  _setPlace(place) {
    if (!place) {
      this._own.removeAttribute("style");
      return;
    }
    const { width, height } = this._own.getBoundingClientRect();
    const clamp = (value, most) => Math.max(0, Math.min(value, Math.max(0, most)));
    this._own.style.left = `${clamp(place.x, window.innerWidth - width)}px`;
    this._own.style.top = `${clamp(place.y, window.innerHeight - height)}px`;
    this._own.style.right = this._own.style.bottom = "auto";
    this._own.style.transform = "none";
  }

  _keep(place) {
    localStorage.setItem(PLACE, JSON.stringify(place));
    this._setPlace(place);
  }

  _drag(down) {
    this._dragged = false;
    if (!this._floats() || down.button !== 0) return;
    const box = this._own.getBoundingClientRect();
    const chip = this._own;
    const move = (event) => {
      const x = box.x + event.clientX - down.clientX;
      const y = box.y + event.clientY - down.clientY;
      if (Math.hypot(x - box.x, y - box.y) > 4) this._dragged = true;
      if (this._dragged) this._keep({ x, y });
    };
    chip.setPointerCapture(down.pointerId);
    chip.addEventListener("pointermove", move);
    const end = () => chip.removeEventListener("pointermove", move);
    chip.addEventListener("pointerup", end, { once: true });
    chip.addEventListener("pointercancel", end, { once: true });
  }

  _nudge(event) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    this._dragged = false;
    const step = steps[event.key];
    if (!step || !this._floats()) return;
    event.preventDefault();
    const box = this._own.getBoundingClientRect();
    this._keep({ x: box.x + NUDGE_PX * step[0], y: box.y + NUDGE_PX * step[1] });
  }
}
