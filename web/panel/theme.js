// The page's colours as a canvas needs them, from ComfyUI's theme variables, light or dark.

export function theme(root = document.documentElement) {
  const styles = getComputedStyle(root);
  const read = (name, otherwise) => styles.getPropertyValue(name).trim() || otherwise;
  return {
    background: read("--comfy-menu-bg", "#202020"),
    text: read("--input-text", read("--fg-color", "#dddddd")),
    faint: read("--descrip-text", "#999999"),
    border: read("--border-color", "#555555"),
    error: read("--error-text", "#ff5555"),
    font: "12px sans-serif",
  };
}
