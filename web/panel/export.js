// Saves what a view shows, as JSON or as a picture.

function save(blob, file) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = file;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

const stamp = () => new Date().toISOString().replace(/[:.]/g, "-").slice(0, 19);

export function saveJson(view, data) {
  const text = JSON.stringify({ view, exported: new Date().toISOString(), data }, null, 2);
  save(new Blob([text], { type: "application/json" }), `lowtide-${view}-${stamp()}.json`);
}

export function savePng(view, canvas) {
  canvas.toBlob((blob) => blob && save(blob, `lowtide-${view}-${stamp()}.png`), "image/png");
}
