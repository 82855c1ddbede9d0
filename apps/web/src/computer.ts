/** The computer that serves this page and waits for its results: targets/devices/browser_server.py. */

import type { Description } from "./device";
import type { Result } from "./job";

/** The computer does not want this page. */
export class Dismissed extends Error {}
/** The computer does not answer any more. */
export class Gone extends Error {}

const TRIES = 5;
const PAUSE_MS = 1000;

export class Computer {
  /** The same after a reload, so that the computer takes this page for the one it knows. */
  private readonly page: string;

  /** base: URL of the folder that the page lies in, with / at the end */
  constructor(private readonly base: string) {
    this.page = sessionStorage.getItem("page") ?? Math.random().toString(36).slice(2);
    sessionStorage.setItem("page", this.page);
  }

  async hello(device: Description): Promise<void> {
    await this.post("hello", { device });
  }

  /** Id of the job that waits, null if none does. */
  async next(): Promise<string | null> {
    return ((await (await this.post("next", {})).json()) as { job: string | null }).job;
  }

  /** URL of a job's files. */
  folder(job: string): string {
    return `${this.base}job/${job}/`;
  }

  async progress(job: string, what: string, done: number, total: number): Promise<void> {
    await this.post("progress", { job, what, done, total });
  }

  async failed(job: string, error: string): Promise<void> {
    await this.post("error", { job, error });
  }

  async finished(result: Result): Promise<void> {
    await this.post("result", result);
  }

  private async post(name: string, content: object): Promise<Response> {
    for (let left = TRIES; ; left--) {
      const response = await fetch(`${this.base}api/${name}`, {
        method: "POST",
        headers: { "Content-Type": "application/json", "X-Page": this.page },
        body: JSON.stringify(content),
      }).catch(() => null); // a phone's network comes and goes
      if (response?.ok) return response;
      if (response?.status === 410) throw new Gone("the computer has ended the session");
      if (response) throw new Dismissed((await response.text()) || `${response.status} ${response.statusText}`);
      if (left === 1) throw new Gone("the computer does not answer");
      await pause(PAUSE_MS);
    }
  }
}

export function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
