/** The web runner: waits for jobs of the computer that serves it, does them, and shows how far it is. */

import { Computer, Dismissed, Gone, pause } from "./computer";
import { describe } from "./device";
import { type Progress, type Step, readJob, runJob } from "./job";
import { messageOf } from "./messages";
import { Page } from "./page";

const POLL_MS = 500;
const TELL_MS = 1000;
/** The computer gives a page up that is silent for a minute; a step may take longer than that. */
const ALIVE_MS = 5000;

const base = new URL("./", location.href).href;
const page = new Page();
const computer = new Computer(base);

async function work(): Promise<never> {
  await page.keepAwake();
  const device = await describe();
  await computer.hello(device);
  page.waiting();
  for (;;) {
    const id = await computer.next();
    if (id === null) {
      await pause(POLL_MS);
      continue;
    }
    const teller = new Teller(id);
    try {
      const job = await readJob(computer.folder(id));
      page.begin(job);
      const result = await runJob(job, computer.folder(id), `${base}litert/`, device, teller.progress);
      teller.stop();
      await computer.finished(result);
      page.done(job, result);
    } catch (error) {
      teller.stop();
      if (error instanceof Gone || error instanceof Dismissed) throw error;
      page.failed(messageOf(error));
      await computer.failed(id, messageOf(error));
    }
  }
}

/** Brings progress to the page and, at most once a second, to the computer. */
class Teller {
  private readonly timer = setInterval(() => this.tell(), ALIVE_MS);
  private latest: [Step, number, number] = ["loading", 0, 1];
  private toldAt = 0;

  constructor(private readonly job: string) {}

  readonly progress: Progress = (step, done, total) => {
    this.latest = [step, done, total];
    page.progress(step, done, total);
    if (performance.now() - this.toldAt > TELL_MS || done === total) this.tell();
  };

  stop(): void {
    clearInterval(this.timer);
  }

  private tell(): void {
    this.toldAt = performance.now();
    computer.progress(this.job, ...this.latest).catch(() => {}); // the next one, or the result, finds the computer gone
  }
}

work().catch((error: unknown) => {
  if (error instanceof Gone) page.ended();
  else page.failed(messageOf(error));
});
