/** Messages above everything else. One of a kind: a new one takes the place of the last. */

import { at, make } from "./dom";

export type Level = "error" | "warning" | "note";

export function notice(kind: string, level: Level, title: string, text: string, action?: [string, () => void]): void {
  clear(kind);
  const box = make("div", "", `notice ${level}`, make("strong", title), make("p", text));
  box.dataset["kind"] = kind;
  if (action) {
    const button = make("button", action[0]);
    button.addEventListener("click", action[1]);
    box.append(button);
  }
  if (level !== "error") {
    const close = make("button", "×", "close");
    close.ariaLabel = "Dismiss";
    close.addEventListener("click", () => box.remove());
    box.append(close);
  }
  at("notices").append(box);
}

export function clear(kind: string): void {
  at("notices").querySelector(`[data-kind="${kind}"]`)?.remove();
}
