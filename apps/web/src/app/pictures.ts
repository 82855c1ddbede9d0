/** The ways that a photo gets in: chosen, taken, dropped, pasted. */

import { at } from "./dom";

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
