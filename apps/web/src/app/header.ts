/** What the first bytes of an image file tell, before anything is decoded. */

export interface Header {
  /** null for what is no image that is known here; a browser may know it all the same */
  kind: string | null;
  /** null if they stand where this file does not look */
  pixels: number | null;
}

/** Enough for the longest EXIF block before a JPEG's size. */
export const HEADER_BYTES = 1 << 18;

export function readHeader(bytes: Uint8Array): Header {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const text = (from: number, to: number) => String.fromCharCode(...bytes.subarray(from, to));
  const area = (width: number, height: number) => Math.abs(width * height);
  const formats: [boolean, string, () => number | null][] = [
    [text(1, 4) === "PNG", "PNG", () => area(view.getUint32(16), view.getUint32(20))],
    [text(0, 3) === "GIF", "GIF", () => area(view.getUint16(6, true), view.getUint16(8, true))],
    [text(0, 4) === "RIFF" && text(8, 12) === "WEBP", "WebP", () => webp(view, text(12, 16))],
    [bytes[0] === 0xff && bytes[1] === 0xd8, "JPEG", () => jpeg(view)],
    [text(4, 8) === "ftyp", /hei|mif1/.test(text(8, 12)) ? "HEIC" : "AVIF", () => null],
    [text(0, 2) === "BM", "BMP", () => area(view.getInt32(18, true), view.getInt32(22, true))],
  ];
  const [, kind, pixels] = formats.find(([is]) => is) ?? [true, null, () => null];
  try {
    return { kind, pixels: pixels() };
  } catch (error) {
    if (!(error instanceof RangeError)) throw error; // it ends before its size: the decoder will say so
    return { kind, pixels: null };
  }
}

function webp(view: DataView, chunk: string): number | null {
  if (chunk === "VP8X") return (1 + (view.getUint32(24, true) & 0xffffff)) * (1 + (view.getUint32(27, true) & 0xffffff));
  if (chunk === "VP8L") {
    const bits = view.getUint32(21, true);
    return (1 + (bits & 0x3fff)) * (1 + ((bits >>> 14) & 0x3fff));
  }
  return chunk === "VP8 " ? (view.getUint16(26, true) & 0x3fff) * (view.getUint16(28, true) & 0x3fff) : null;
}

/** Walks over the segments to the one that begins a frame. */
function jpeg(view: DataView): number {
  for (let at = 2; ; ) {
    const marker = view.getUint8(at + 1);
    const frame = marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker);
    if (frame) return view.getUint16(at + 5) * view.getUint16(at + 7);
    at += marker === 0xff ? 1 : 2 + view.getUint16(at + 2);
  }
}
