/**
 * Any picture to the size that the model takes, by the rule in the manifest (input.resize): what the pipeline's
 * evaluation does, to the bit. Reads the picture in strips, so that a huge one is never held a second time.
 */

/** What of input.resize is a parameter; its other entries describe in words what stands in this file. */
export interface ResizeRule {
  shorter_side: number;
  /** "shorter_side" for pictures that are squeezed into a square, else words */
  longer_side: string;
  interpolation: string;
  centre_crop: number;
}

/** Upright RGBA pixels, some rows at a time. */
export interface Source {
  width: number;
  height: number;
  /** rows x width x 4 bytes; good until the next call */
  rows(top: number, count: number): Uint8ClampedArray;
}

const WEIGHT_STEPS = 2 ** 22;
const STRIP_PIXELS = 1 << 20;
const KERNELS: Record<string, [reach: number, kernel: (x: number) => number]> = {
  bilinear: [1, (x) => (x < 1 ? 1 - x : 0)],
  bicubic: [2, bicubic],
};

function bicubic(x: number): number {
  const a = -0.5;
  if (x < 1) return (a + 2) * x ** 3 - (a + 3) * x ** 2 + 1;
  return x < 2 ? a * (x ** 3 - 5 * x ** 2 + 8 * x - 4) : 0;
}

/** Which inputs make each of the kept outputs along one axis. */
interface Taps {
  /** first input of each output, and one behind its last */
  from: Int32Array;
  to: Int32Array;
  /** weights of output i begin at i * stride; multiples of 1, where 2^22 is one */
  weights: Float64Array;
  stride: number;
}

/** Side lengths of the whole picture once resized, and where the part lies that is kept. */
export function plan(width: number, height: number, rule: ResizeRule) {
  const { shorter_side: side, centre_crop: size } = rule;
  const squeezed = rule.longer_side === "shorter_side";
  const wide = squeezed || width <= height ? side : Math.trunc((side * width) / height);
  const tall = squeezed || height <= width ? side : Math.trunc((side * height) / width);
  return { wide, tall, left: halfToEven((wide - size) / 2), top: halfToEven((tall - size) / 2), size };
}

/** RGB (size, size, 3) of a picture. */
export function resize(source: Source, rule: ResizeRule): Uint8ClampedArray {
  const { width, height } = source;
  const { wide, tall, left, top, size } = plan(width, height, rule);
  const across = taps(width, wide, left, size, rule.interpolation);
  const down = taps(height, tall, top, size, rule.interpolation);
  const rowsFirst = tall < height && height - tall > 2 * (width - wide);
  const first = down.from[0]!;
  const last = down.to[size - 1]!;
  const strip = Math.max(1, Math.floor(STRIP_PIXELS / width));
  const pass = rowsFirst ? new RowsFirst(across, down, width, size) : new ColumnsFirst(across, down, first, last, size);
  for (let row = first; row < last; row += strip) {
    const count = Math.min(strip, last - row);
    pass.take(source.rows(row, count), row, count, width);
  }
  return pass.result();
}

/** Along x as the rows come, then along y. */
class ColumnsFirst {
  private readonly narrowed: Uint8ClampedArray;

  constructor(
    private readonly across: Taps,
    private readonly down: Taps,
    private readonly first: number,
    last: number,
    private readonly size: number,
  ) {
    this.narrowed = new Uint8ClampedArray((last - first) * size * 3);
  }

  take(pixels: Uint8ClampedArray, row: number, count: number, width: number): void {
    for (let i = 0; i < count; i++) {
      narrow(pixels, i * width * 4, 4, this.across, this.narrowed, (row - this.first + i) * this.size * 3);
    }
  }

  result(): Uint8ClampedArray {
    const line = this.size * 3;
    const out = new Uint8ClampedArray(this.size * line);
    const sums = new Float64Array(line);
    const { from, to, weights, stride } = this.down;
    for (let y = 0; y < this.size; y++) {
      sums.fill(0);
      for (let row = from[y]!; row < to[y]!; row++) {
        const weight = weights[y * stride + row - from[y]!]!;
        const begin = (row - this.first) * line;
        for (let i = 0; i < line; i++) sums[i]! += weight * this.narrowed[begin + i]!;
      }
      for (let i = 0; i < line; i++) out[y * line + i] = rounded(sums[i]!);
    }
    return out;
  }
}

/** Along y as the rows come, in the columns that matter, then along x. */
class RowsFirst {
  private readonly left: number;
  private readonly line: number;
  private readonly sums: Float64Array;

  constructor(
    private readonly across: Taps,
    private readonly down: Taps,
    private readonly width: number,
    private readonly size: number,
  ) {
    this.left = across.from[0]!;
    this.line = (across.to[size - 1]! - this.left) * 3;
    this.sums = new Float64Array(size * this.line);
  }

  take(pixels: Uint8ClampedArray, row: number, count: number): void {
    const { from, to, weights, stride } = this.down;
    for (let y = 0; y < this.size; y++) {
      const end = Math.min(to[y]!, row + count);
      for (let r = Math.max(from[y]!, row); r < end; r++) {
        const weight = weights[y * stride + r - from[y]!]!;
        let input = ((r - row) * this.width + this.left) * 4;
        for (let i = y * this.line, stop = i + this.line; i < stop; i += 3, input += 4) {
          this.sums[i]! += weight * pixels[input]!;
          this.sums[i + 1]! += weight * pixels[input + 1]!;
          this.sums[i + 2]! += weight * pixels[input + 2]!;
        }
      }
    }
  }

  result(): Uint8ClampedArray {
    const flat = Uint8ClampedArray.from(this.sums, rounded);
    const out = new Uint8ClampedArray(this.size * this.size * 3);
    const across = { ...this.across, from: this.across.from.map((x) => x - this.left), to: this.across.to.map((x) => x - this.left) };
    for (let y = 0; y < this.size; y++) narrow(flat, y * this.line, 3, across, out, y * this.size * 3);
    return out;
  }
}

/** One row through the taps: pixels of `step` bytes from `begin` on become RGB from `end` on. */
function narrow(pixels: Uint8ClampedArray, begin: number, step: number, across: Taps, out: Uint8ClampedArray, end: number): void {
  const { from, to, weights, stride } = across;
  for (let x = 0; x < from.length; x++) {
    let red = 0;
    let green = 0;
    let blue = 0;
    let weight = x * stride;
    for (let i = begin + from[x]! * step, stop = begin + to[x]! * step; i < stop; i += step, weight++) {
      const w = weights[weight]!;
      red += w * pixels[i]!;
      green += w * pixels[i + 1]!;
      blue += w * pixels[i + 2]!;
    }
    out[end++] = rounded(red);
    out[end++] = rounded(green);
    out[end++] = rounded(blue);
  }
}

/** A sum of weighted bytes as a byte, halves up; the array that takes it cuts it off to 0..255. */
function rounded(sum: number): number {
  return Math.floor(sum / WEIGHT_STEPS + 0.5);
}

/** Taps of `kept` outputs from `first` on, out of all that the inputs are resized to. */
function taps(inputs: number, outputs: number, first: number, kept: number, interpolation: string): Taps {
  const [reach, kernel] = KERNELS[interpolation] ?? [];
  if (!reach || !kernel) throw new Error(`this app does not know the interpolation ${interpolation}`);
  const from = new Int32Array(kept);
  const to = new Int32Array(kept);
  if (inputs === outputs) {
    from.forEach((_, i) => (to[i] = (from[i] = first + i) + 1));
    return { from, to, weights: new Float64Array(kept).fill(WEIGHT_STEPS), stride: 1 };
  }
  const scale = inputs / outputs;
  const stretch = Math.max(scale, 1);
  const stride = Math.ceil(2 * reach * stretch) + 2;
  const weights = new Float64Array(kept * stride);
  for (let i = 0; i < kept; i++) {
    const centre = (first + i + 0.5) * scale;
    from[i] = Math.max(0, Math.floor(centre - reach * stretch));
    to[i] = Math.min(inputs, Math.ceil(centre + reach * stretch));
    const row = weights.subarray(i * stride, i * stride + to[i]! - from[i]!);
    row.forEach((_, j) => (row[j] = kernel(Math.abs(from[i]! + j + 0.5 - centre) / stretch)));
    const sum = row.reduce((total, weight) => total + weight, 0);
    row.forEach((weight, j) => (row[j] = Math.round((weight / sum) * WEIGHT_STEPS)));
  }
  return { from, to, weights, stride };
}

function halfToEven(value: number): number {
  const below = Math.floor(value);
  if (value - below !== 0.5) return Math.round(value);
  return below % 2 === 0 ? below : below + 1;
}
