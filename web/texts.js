// The words of our own elements, from locales/<language>/main.json as ComfyUI serves them.

let words = {};
let english = {};

/** A text of the tree; only its own, so that no key from outside reaches anything else. */
function at(tree, key) {
  const own = (node, part) => (node && Object.hasOwn(node, part) ? node[part] : undefined);
  const found = key.split(".").reduce(own, tree);
  return typeof found === "string" ? found : undefined;
}

/** Fetches the words once. Without an answer the keys themselves are shown. */
export async function loadTexts(api, language) {
  try {
    const answer = await (await api.fetchApi("/i18n")).json();
    english = answer.en?.lowtide ?? {};
    words = answer[language]?.lowtide ?? answer[String(language).split("-")[0]]?.lowtide ?? english;
  } catch (error) {
    console.warn("lowtide: no texts", error);
  }
}

/** The text of a key, `{name}` replaced by the values given. */
export function t(key, values = {}) {
  const text = at(words, key) ?? at(english, key) ?? key;
  return text.replace(/\{(\w+)\}/g, (whole, name) => String(values[name] ?? whole));
}
