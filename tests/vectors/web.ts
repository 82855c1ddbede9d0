/** The web app's logic against the vectors: `node web.js FOLDER` prints how many cases of each file it has tried. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createHash } from "node:crypto";
import { best, softmax } from "../../apps/web/src/app/answer";
import { parseManifest } from "../../apps/web/src/app/manifest";
import { resize, type ResizeRule } from "../../apps/web/src/app/resize";
import { argmax, largestDifference, top1 } from "../../apps/web/src/job";
import { summarise } from "../../apps/web/src/latency";

const folder = process.argv[2]!;
const tried: Record<string, number> = {};

function cases(name: string): any[] {
  const found = JSON.parse(readFileSync(`${folder}/${name}`, "utf8"));
  tried[name] = found.length;
  return found;
}

function numbers(row: (number | null)[]): number[] {
  return row.map((value) => value ?? NaN);
}

function close(found: number, expected: number, what: string): void {
  assert.ok(Math.abs(found - expected) <= 1e-9 * Math.max(1, Math.abs(expected)), `${what}: ${found}, not ${expected}`);
}

/** RGBA of a picture as make.py makes it. */
function picture(width: number, height: number): Uint8ClampedArray {
  const pixels = new Uint8ClampedArray(width * height * 4).fill(255);
  let state = 1 + width + 1000 * height;
  for (let i = 0; i < width * height * 3; i++) {
    state = (Math.imul(state, 1103515245) + 12345) & 0x7fffffff;
    const place = Math.floor(i / 3);
    pixels[place * 4 + (i % 3)] = (((state >> 16) % 128) + Math.floor(((place % width) * 127) / width)) % 256;
  }
  return pixels;
}

for (const { width, height, rule, sha256, first } of cases("resize.json")) {
  const pixels = picture(width, height);
  const rows = (top: number, count: number) => pixels.subarray(top * width * 4, (top + count) * width * 4);
  const found = resize({ width, height, rows }, rule as ResizeRule);
  assert.deepEqual([...found.subarray(0, 12)], first, `${width} x ${height}`);
  assert.equal(createHash("sha256").update(found).digest("hex"), sha256, `${width} x ${height} ${JSON.stringify(rule)}`);
}
for (const { samples_ns, seconds, min_samples, why_invalid, ...expected } of cases("statistics.json")) {
  const found = summarise(samples_ns, seconds, min_samples, 0) as unknown as Record<string, number | string | null>;
  for (const [name, value] of Object.entries(expected)) close(found[name] as number, value as number, name);
  assert.equal(found["why_invalid"], why_invalid);
}
for (const { logits, argmax: place, best: places, shares } of cases("answers.json")) {
  const row = numbers(logits);
  assert.equal(argmax(row), place);
  assert.deepEqual(best(row, 5), places);
  for (const [i, share] of (shares ?? []).entries()) close(softmax(row)[i]!, share, "share");
}
for (const { found, expected, error, labels, top1: share } of cases("differences.json")) {
  assert.equal(largestDifference(found.map(numbers), expected), error);
  assert.equal(top1(found.map(numbers), labels), share);
}
for (const { name, text, good, web } of cases("manifests.json")) {
  if (good || web) assert.ok(parseManifest(text).labels.length > 0, name);
  else assert.throws(() => parseManifest(text), /manifest\.json/, name);
}
console.log(JSON.stringify(tried));
