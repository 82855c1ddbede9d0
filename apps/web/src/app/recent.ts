/** Figures of the newest inferences: what the live picture shows. */

import { percentile } from "../latency";

const KEPT = 128;

export class Recent {
  private taken: number[] = [];
  private ended: number[] = [];

  /** now: time of its end, milliseconds */
  add(milliseconds: number, now: number): void {
    this.taken = [...this.taken.slice(1 - KEPT), milliseconds];
    this.ended = [...this.ended.slice(-15), now];
  }

  get p50(): number {
    return percentile(this.sorted(), 0.5);
  }

  get p90(): number {
    return percentile(this.sorted(), 0.9);
  }

  /** Pictures a second, of the newest 16; null for fewer than two. */
  get rate(): number | null {
    const span = this.ended.at(-1)! - this.ended[0]!;
    return span > 0 ? (1000 * (this.ended.length - 1)) / span : null;
  }

  private sorted(): Float64Array {
    return Float64Array.from(this.taken).sort();
  }
}
