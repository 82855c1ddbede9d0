/** Numbers as they are shown. */

const MINUS = "\u2212";

/** Three digits are what a measurement is worth. */
export function milliseconds(value: number): string {
  return `${value >= 100 ? Math.round(value) : value.toPrecision(3)} ms`;
}

export function bytes(value: number): string {
  return value < 1e6 ? `${Math.round(value / 1e3)} kB` : `${(value / 1e6).toFixed(value < 1e7 ? 2 : 1)} MB`;
}

export function count(value: number): string {
  if (value < 1e3) return String(value);
  return value < 1e6 ? `${(value / 1e3).toPrecision(3)} k` : `${(value / 1e6).toPrecision(3)} M`;
}

export function percent(share: number, digits = 1): string {
  return `${(100 * share).toFixed(digits)} %`;
}

/** A change against `from`, in percent. */
export function change(from: number, to: number): string {
  const share = Math.round(100 * (to / from - 1));
  return share === 0 ? "the same" : `${share < 0 ? MINUS : "+"}${Math.abs(share)} %`;
}

export function points(from: number, to: number): string {
  const difference = to - from;
  if (Math.abs(difference) < 0.05) return "the same";
  return `${difference < 0 ? MINUS : "+"}${Math.abs(difference).toFixed(1)} points`;
}

/** As a name of a class is read; data sets write them with underscores. */
export function label(name: string): string {
  return name.replaceAll("_", " ");
}
