/** A photo, or a frame of the camera, as the model wants it. Runs in the worker. */

import { HEADER_BYTES, readHeader } from "./header";
import { resize, type ResizeRule, type Source } from "./resize";

/** What is no picture, or too large a one; the message is for whoever chose it. */
export class PictureError extends Error {}

export interface Prepared {
  /** RGB 0..255, H x W x 3 */
  pixels: Float32Array<ArrayBuffer>;
  width: number;
  height: number;
  /** the picture to show, made smaller; null if none was asked for */
  preview: ImageBitmap | null;
}

/** Decoders here and in the pipeline stop there; phones with little memory much earlier. */
const PIXELS_MAX = 178_956_970;
const PIXELS_PER_GIB = 50e6;
/** Of a canvas; wider pictures are read in pieces. */
const SIDE_MAX = 8192;
/** Of browsers that do not tell: what a phone lends a page. */
const MEMORY_GIB = 2;
/** Colours as they stand in the file: what the pipeline sees. Upright is the default; older browsers refuse its name. */
const AS_STORED: ImageBitmapOptions = { colorSpaceConversion: "none", premultiplyAlpha: "none" };

/** preview: longer side of the picture to show, in pixels, 0 for none */
export async function prepare(source: Blob | ImageBitmap, rule: ResizeRule, preview: number): Promise<Prepared> {
  const bitmap = source instanceof Blob ? await decode(source) : source;
  try {
    const { width, height } = bitmap;
    const pixels = Float32Array.from(resize(new Strips(bitmap), rule));
    return { pixels, width, height, preview: preview > 0 ? await shrink(bitmap, preview) : null };
  } finally {
    bitmap.close();
  }
}

async function decode(file: Blob): Promise<ImageBitmap> {
  if (file.size === 0) throw new PictureError("This file is empty.");
  const { kind, pixels } = readHeader(new Uint8Array(await file.slice(0, HEADER_BYTES).arrayBuffer()));
  const memory = (navigator as { deviceMemory?: number }).deviceMemory ?? MEMORY_GIB;
  const most = Math.min(PIXELS_MAX, memory * PIXELS_PER_GIB);
  if (pixels !== null && pixels > most) {
    const [is, may] = [pixels, most].map((count) => Math.round(count / 1e6));
    throw new PictureError(`This picture has ${is} megapixels. Up to ${may} fit into this device's memory.`);
  }
  try {
    return await createImageBitmap(file, AS_STORED);
  } catch (error) {
    if (error instanceof TypeError) throw error; // it is the browser that refuses, not the picture that is at fault
    if (kind === null) throw new PictureError("This file is no picture that this browser can read.");
    if (kind === "HEIC") throw new PictureError("This browser cannot read HEIC pictures. A JPEG would do.");
    throw new PictureError(`This ${kind} picture is damaged, or too large for this device.`);
  }
}

/** The picture's longer side at most `longest`, never made larger. */
function shrink(bitmap: ImageBitmap, longest: number): Promise<ImageBitmap> {
  const scale = Math.min(1, longest / Math.max(bitmap.width, bitmap.height));
  const side = (length: number) => Math.max(1, Math.round(scale * length));
  const [resizeWidth, resizeHeight] = [side(bitmap.width), side(bitmap.height)];
  return createImageBitmap(bitmap, { resizeWidth, resizeHeight, resizeQuality: "medium" });
}

/** One for all pictures: a new one for every frame of a camera would fill the memory faster than it is given back. */
let canvas: OffscreenCanvas | null = null;

/** Rows of a bitmap by way of a small canvas. */
class Strips implements Source {
  readonly width: number;
  readonly height: number;

  constructor(private readonly bitmap: ImageBitmap) {
    this.width = bitmap.width;
    this.height = bitmap.height;
  }

  rows(top: number, count: number): Uint8ClampedArray {
    if (this.width <= SIDE_MAX) return this.piece(0, top, this.width, count);
    const whole = new Uint8ClampedArray(this.width * count * 4);
    for (let left = 0; left < this.width; left += SIDE_MAX) {
      const width = Math.min(SIDE_MAX, this.width - left);
      const piece = this.piece(left, top, width, count);
      for (let row = 0; row < count; row++) {
        whole.set(piece.subarray(row * width * 4, (row + 1) * width * 4), (row * this.width + left) * 4);
      }
    }
    return whole;
  }

  private piece(left: number, top: number, width: number, height: number): Uint8ClampedArray {
    if (canvas?.width !== width || canvas.height !== height) canvas = new OffscreenCanvas(width, height);
    // Read from here alone: a canvas in the graphics card's memory would have to be fetched back each time.
    const context = canvas.getContext("2d", { willReadFrequently: true });
    if (!context) throw new PictureError("This browser cannot read a picture's pixels.");
    context.globalCompositeOperation = "copy";
    context.drawImage(this.bitmap, left, top, width, height, 0, 0, width, height);
    return context.getImageData(0, 0, width, height).data;
  }
}
