/** The likeliest classes with bars, and the figures below them. */

import { at, make, setText } from "./dom";
import { label, percent } from "./format";

const SHOWN = 5;
/** A voice that follows every frame could not be listened to. */
const SPEAK_MS = 2500;

let spokenAt = -Infinity;

/** Probabilities of logits. */
export function softmax(logits: ArrayLike<number>): number[] {
  const values = Array.from(logits);
  const largest = Math.max(...values);
  const powers = values.map((value) => Math.exp(value - largest));
  const sum = powers.reduce((total, value) => total + value, 0);
  return powers.map((value) => value / sum);
}

/** Places of the `count` largest, the largest first; of equal ones the first first. What is no number comes last. */
export function best(values: number[], count: number): number[] {
  const keys = values.map((value) => (Number.isNaN(value) ? -Infinity : value));
  return [...keys.keys()].sort((a, b) => (keys[a] === keys[b] ? a - b : keys[b]! - keys[a]!)).slice(0, count);
}

/** live: more of them follow at once, and not every one is said */
export function showAnswer(labels: string[], logits: ArrayLike<number>, live: boolean): void {
  const shares = softmax(logits);
  const list = at("top");
  const places = best(shares, Math.min(SHOWN, labels.length));
  while (list.children.length < places.length) {
    const track = make("span", "", "track", make("i"));
    track.ariaHidden = "true";
    list.append(make("li", "", "", make("span", "", "name"), make("span", "", "share"), track));
  }
  for (const [row, place] of places.entries()) {
    const [name, share, track] = list.children[row]!.children as unknown as [HTMLElement, HTMLElement, HTMLElement];
    setText(name, label(labels[place]!));
    setText(share, percent(shares[place]!));
    (track.firstElementChild as HTMLElement).style.transform = `scaleX(${shares[place]!.toFixed(4)})`;
  }
  list.hidden = false;
  const first = `${label(labels[places[0]!]!)}, ${percent(shares[places[0]!]!, 0)}`;
  if (live && performance.now() - spokenAt < SPEAK_MS) return;
  setText(at("spoken"), first);
  spokenAt = performance.now();
}

export function showFigures(figures: [name: string, value: string][]): void {
  const list = at("figures");
  while (list.children.length < figures.length) list.append(make("div", "", "", make("dt"), make("dd")));
  while (list.children.length > figures.length) list.lastElementChild!.remove();
  for (const [i, [name, value]] of figures.entries()) {
    setText(list.children[i]!.children[0]!, name);
    setText(list.children[i]!.children[1]!, value);
  }
  list.hidden = false;
}
