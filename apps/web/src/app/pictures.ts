/** The ways that a photo gets in: chosen, taken, dropped, pasted, one of the golden ones. */

import { at, make } from "./dom";
import { addressOf, type Manifest } from "./manifest";

export function choosePictures(take: (file: File) => void): void {
  at("choose").addEventListener("click", () => at("file").click());
  for (const id of ["file", "shot"]) {
    const input = at<HTMLInputElement>(id);
    input.addEventListener("change", () => {
      const file = input.files?.[0];
      if (file) take(file);
      input.value = ""; // the same file may be chosen again
    });
  }
  document.addEventListener("paste", ({ clipboardData }) => {
    const file = clipboardData?.files[0];
    if (file) take(file);
  });
  const dragged = (event: DragEvent) => event.dataTransfer?.types.includes("Files") ?? false;
  document.addEventListener("dragover", (event) => {
    if (!dragged(event)) return;
    event.preventDefault();
    document.body.classList.add("dragging");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dragging");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    const file = event.dataTransfer?.files[0];
    if (!file) return;
    location.hash = "#classify";
    take(file);
  });
}

/** folder: URL of the model's, with / at the end */
export function offerSamples(manifest: Manifest, folder: string, take: (file: Blob) => void): void {
  const items = manifest.golden.slice(0, 8).map((golden, i) => {
    const image = document.createElement("img");
    image.src = addressOf(folder, golden);
    image.alt = "";
    const button = make("button", "", "", image);
    button.ariaLabel = `Test picture ${i + 1}`;
    button.addEventListener("click", async () => {
      const response = await fetch(image.src).catch(() => null);
      if (response?.ok) take(await response.blob());
    });
    return make("li", "", "", button);
  });
  at("sample-list").replaceChildren(...items);
}
