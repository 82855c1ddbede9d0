/** What the runner shows. Nothing moves by itself: an animation would take the processor from what is measured. */

import type { Job, Result, Step } from "./job";

const SHARE: Record<Step, [from: number, to: number]> = {
  loading: [0, 0.08],
  golden: [0.08, 0.1],
  images: [0.1, 0.35],
  latency: [0.35, 1],
};

const TEXT: Record<Step, string> = {
  loading: "Loading",
  golden: "Known answers",
  images: "Test images",
  latency: "Speed",
};

export class Page {
  private steps: Step[] = [];

  waiting(): void {
    this.state("waiting", "Connected", "Waiting for the computer to send a model.");
  }

  begin(job: Job): void {
    this.steps = (["loading", "golden", "images", "latency"] as const).filter(
      (step) =>
        step === "loading" ||
        (step === "golden" && job.golden.length > 0) ||
        (step === "images" && job.labels.length > 0) ||
        (step === "latency" && job.protocol !== null),
    );
    at("steps").replaceChildren(
      ...this.steps.map((step) => {
        const item = element("li", TEXT[step]);
        item.id = step;
        item.append(element("span", ""));
        return item;
      }),
    );
    this.state("working", "Measuring", job.files[0]);
    this.bar(0);
  }

  progress(step: Step, done: number, total: number): void {
    const share = total > 0 ? done / total : 1;
    const [from, to] = SHARE[step];
    this.bar(from + share * (to - from));
    const current = this.steps.indexOf(step);
    for (const [index, name] of this.steps.entries()) {
      const over = index < current || (index === current && share === 1);
      at(name).className = over ? "done" : index === current ? "now" : "";
    }
    at(step).lastElementChild!.textContent = step === "latency" ? seconds(done, total) : `${done} of ${total}`;
  }

  done(job: Job, result: Result): void {
    this.bar(1);
    const found = result.latency[job.files[0]];
    const facts: [string, string][] = [];
    if (result.top1 !== null) {
      facts.push(["Right answers", `${(100 * result.top1).toFixed(1)} % of ${job.labels.length}`]);
    }
    if (found) {
      facts.push(["Typical time", milliseconds(found.p50_ms)], ["90 % within", milliseconds(found.p90_ms)]);
    }
    const card = element("section", "");
    const list = element("dl", "");
    list.append(...facts.flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
    card.append(element("h2", job.files[0]), list);
    if (result.refused) card.append(element("p", result.refused));
    if (found?.why_invalid) card.append(element("p", `The time does not count: ${found.why_invalid}.`));
    at("results").prepend(card);
    this.state("waiting", "Result sent", "Waiting in case the computer has another model.");
  }

  failed(reason: string): void {
    this.state("failed", "It did not work", reason);
  }

  ended(): void {
    if (document.body.dataset["state"] === "failed") return; // the reason stays
    this.state("ended", "Finished", "The computer has ended the session. You can close this page.");
  }

  /** Ask for the screen to stay on, again whenever the page comes back; browsers can't on plain http. */
  async keepAwake(): Promise<void> {
    const ask = async () => {
      const lock = await navigator.wakeLock?.request("screen").catch(() => null);
      if (lock) return;
      at("awake").textContent = "Keep this page in front, and touch the screen now and then so that it stays on.";
    };
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) void ask();
    });
    await ask();
  }

  private state(name: string, title: string, text: string): void {
    document.body.dataset["state"] = name;
    at("title").textContent = title;
    at("text").textContent = text;
    document.title = title;
  }

  private bar(share: number): void {
    const bar = at("bar") as HTMLProgressElement;
    bar.value = share;
    at("percent").textContent = `${Math.floor(100 * share)} %`;
  }
}

function at(id: string): HTMLElement {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no #${id}`);
  return found;
}

function element(name: string, text: string): HTMLElement {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

function seconds(done: number, total: number): string {
  return done === 0 && total > 0 ? "letting the device rest" : `${Math.round(done)} of ${Math.round(total)} s`;
}

function milliseconds(value: number): string {
  return `${value.toPrecision(3)} ms`;
}
