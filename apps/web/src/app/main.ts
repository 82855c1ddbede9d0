/** The page: loads the model, and brings pictures to it and answers back. */

import type { Pixels, Timed } from "../inference";
import { messageOf } from "../messages";
import { showAnswer, showFigures } from "./answer";
import { glance, showBought, type Times } from "./bought";
import { Camera, CameraError } from "./camera";
import { type Here, showCard, showFacts, threads } from "./card";
import { at, pause } from "./dom";
import { Engine } from "./engine";
import { milliseconds } from "./format";
import { tryGpu } from "./gpu";
import { fileOf, type Manifest, ModelError, readManifest, type Role } from "./manifest";
import { clear, notice } from "./notices";
import { keepOffline } from "./offline";
import { choosePictures, offerSamples } from "./pictures";
import { Recent } from "./recent";
import { offer, validate } from "./validation";
import { showViews } from "./views";

const base = new URL("./", location.href).href;
const folder = `${base}model/`;
/** Longer side of a photo as it is shown, pixels. */
const PREVIEW = 1280;
/** Text that changes faster than this cannot be read. */
const SHOW_MS = 120;
/** How often it is looked whether nobody wants anything. */
const IDLE_MS = 500;
/** Inferences of a photo that are timed, behind one that wakes threads and fills caches. */
const PHOTO_RUNS = 5;

const video = at<HTMLVideoElement>("video");
const camera = new Camera(video);
let manifest: Manifest;
let engine: Engine;
/** the golden pictures, as far as they are here */
let goldens: Pixels[] = [];
let times: Times | null = null;
let role: Role = "pruned";
/** the photo on show */
let photo: { pixels: Pixels; size: string } | null = null;
let watching: "no" | "starting" | "live" = "no";
/** counts what is on show: what comes late for an earlier one is dropped */
let turn = 0;
/** the turn that the page's going out of sight began, and its coming back ends */
let interrupted = -1;
/** ends the check that runs */
let check: AbortController | null = null;
/** the graphics processor's, which a check waits for */
let trial: Promise<unknown> = Promise.resolve();
let recovery: Promise<void> | null = null;
const here: Here = { golden: "not looked at yet", graphics: "", offline: "" };

/** Whatever was going on is not wanted any more: the camera goes off, and what comes late is dropped. */
function supersede(): number {
  camera.stop();
  watching = "no";
  at("busy").hidden = at("flip").hidden = true;
  at("spoken").textContent = "";
  return ++turn;
}

/** One inference. A graphics processor that fails is given up, and the processor asked. */
async function time(pixels: Pixels): Promise<Timed> {
  const [asked, of] = [engine, role];
  try {
    return await asked.time(of, pixels);
  } catch (error) {
    if (asked.accelerator !== "webgpu") throw error;
    if (engine === asked) await (recovery ??= leaveGpu(asked, messageOf(error)).finally(() => (recovery = null)));
    return engine.time(of, pixels);
  }
}

// Photos

async function look(source: Blob): Promise<void> {
  clear("picture");
  if (check) {
    notice("picture", "note", "A check runs", "A picture would spoil its times: choose one once it is done.");
    return;
  }
  clear("camera");
  const mine = supersede();
  photo = null;
  show(document.body.dataset["source"] === "photo" ? "photo" : "none");
  at("busy").hidden = false;
  try {
    const prepared = await engine.prepare(source, PREVIEW);
    if (mine !== turn) {
      prepared.preview?.close();
      return;
    }
    photo = { pixels: prepared.pixels, size: `${prepared.width} × ${prepared.height}` };
    const canvas = at<HTMLCanvasElement>("photo");
    canvas.width = prepared.preview!.width;
    canvas.height = prepared.preview!.height;
    canvas.getContext("bitmaprenderer")!.transferFromImageBitmap(prepared.preview);
    await classifyPhoto();
  } catch (error) {
    if (mine !== turn) return;
    at("busy").hidden = true;
    show("none");
    notice("picture", "warning", "That did not work", messageOf(error));
  }
}

async function classifyPhoto(): Promise<void> {
  if (!photo) return;
  const { pixels, size } = photo;
  const mine = supersede();
  show("photo");
  at("busy").hidden = false;
  try {
    const { logits } = await time(pixels);
    if (mine !== turn) return;
    showAnswer(manifest.labels, logits, false);
    at("busy").hidden = true;
    const recent = new Recent();
    for (let i = 0; i < PHOTO_RUNS; i++) {
      recent.add((await time(pixels)).milliseconds, performance.now());
      if (mine !== turn) return;
    }
    showFigures([["inference, p50", milliseconds(recent.p50)], ["picture", size]]);
  } catch (error) {
    if (mine !== turn) return;
    at("busy").hidden = true;
    notice("picture", "warning", "That did not work", messageOf(error));
  }
}

// Camera

async function startLive(begin: () => Promise<void> = () => camera.start(cameraEnded)): Promise<void> {
  clear("camera");
  clear("picture");
  if (!Camera.available) {
    at("shot").click();
    return;
  }
  const flips = watching === "live";
  const mine = supersede();
  photo = null;
  watching = "starting";
  show(flips ? "camera" : "none");
  try {
    await begin();
    if (mine !== turn) return;
    watching = "live";
    show("camera");
    const several = await Camera.several();
    if (mine !== turn) return;
    at("flip").hidden = !several;
  } catch (error) {
    if (mine !== turn) return;
    stopLive();
    notice("camera", "warning", "No camera", error instanceof CameraError ? error.message : messageOf(error));
    return;
  }
  await follow(mine);
}

/** Frame after frame, each only when the one before is done. */
async function follow(mine: number): Promise<void> {
  let recent = new Recent();
  let of = role;
  let shownAt = -Infinity;
  try {
    while (mine === turn) {
      const { pixels } = await engine.prepare(await camera.frame(), 0);
      if (mine !== turn) return;
      if (of !== role) recent = new Recent();
      of = role;
      const { logits, milliseconds: taken } = await time(pixels);
      if (mine !== turn) return;
      const now = performance.now();
      recent.add(taken, now);
      if (now - shownAt < SHOW_MS) continue;
      shownAt = now;
      showAnswer(manifest.labels, logits, true);
      showFigures([
        ["pictures", recent.rate === null ? "–" : `${recent.rate.toFixed(1)} /s`],
        ["p50", milliseconds(recent.p50)],
        ["p90", milliseconds(recent.p90)],
      ]);
    }
  } catch (error) {
    if (mine === turn) {
      stopLive();
      notice("camera", "warning", "The camera stopped", messageOf(error));
    }
  }
}

function stopLive(): void {
  supersede();
  show("none");
}

function cameraEnded(): void {
  stopLive();
  notice("camera", "warning", "The camera stopped", "It was taken away. Start it again, or choose a photo.");
}

/** none, photo or camera; what was found out about the one before goes */
function show(source: string): void {
  document.body.dataset["source"] = source;
  at("empty").hidden = source !== "none";
  at("photo").hidden = source !== "photo";
  video.hidden = source !== "camera";
  at("crop").hidden = source === "none";
  at("top").hidden = at("figures").hidden = true;
  at("samples").hidden = source === "camera" || manifest.golden.length === 0;
  const [use, text] = [at("live").querySelector("use")!, at("live").querySelector("span")!];
  use.setAttribute("href", watching === "no" ? "#i-camera" : "#i-stop");
  text.textContent = watching !== "no" ? "Stop" : Camera.available ? "Camera" : "Take photo";
}

/** What can be used now: while a check runs, nothing whose work would spoil its times. */
function allow(): void {
  for (const id of ["live", "flip", "choose"]) at<HTMLButtonElement>(id).disabled = check !== null;
  for (const button of at("sample-list").querySelectorAll("button")) button.disabled = check !== null;
  at<HTMLFieldSetElement>("switch").disabled = check !== null || engine.roles.size < 2;
  at("check-run").querySelector("span")!.textContent = check ? "Cancel" : "Run the check";
}

// The model

/** The part of the view that the model sees: the view shows the square that the shorter side spans. */
function frameCrop(): void {
  const { longer_side, shorter_side, centre_crop } = manifest.input.resize;
  document.body.classList.toggle("squeezed", longer_side === "shorter_side");
  const inset = 50 * (1 - centre_crop / shorter_side);
  at("crop").style.inset = `${inset.toFixed(2)}%`;
  at("crop").classList.toggle("whole", inset < 0.5);
}

/** Take the time of both models while nobody wants anything else. */
async function compareTimes(): Promise<void> {
  const idle = () => watching === "no" && !check && !document.hidden && at("busy").hidden === true;
  const picture = goldens[0] ?? engine.grey();
  while (engine.roles.size === 2 && !times) {
    times = idle() ? await glance(engine, picture, idle) : null;
    if (!times) await pause(IDLE_MS);
  }
  showBought(manifest, times);
}

async function runCheck(): Promise<void> {
  const mine = (check = new AbortController());
  if (photo) supersede();
  else stopLive();
  allow();
  clear("check");
  at("check-progress").hidden = false;
  at("check-save").hidden = at("check-share").hidden = true;
  at("check-said").textContent = "The check runs";
  at("check-text").textContent = "Waiting for what is under way";
  at<HTMLProgressElement>("check-bar").value = 0;
  try {
    const chosen = document.querySelector<HTMLInputElement>("input[name=protocol]:checked")!.value;
    await trial;
    mine.signal.throwIfAborted();
    offer(await validate(engine, folder, chosen, mine.signal));
    at("check-said").textContent = "The check is done";
  } catch (error) {
    at("check-said").textContent = "";
    if (!mine.signal.aborted) notice("check", "warning", "The check broke off", messageOf(error));
  } finally {
    check = null;
    allow();
    at("check-progress").hidden = true;
    if (photo && at("figures").hidden) void classifyPhoto();
  }
}

function showStatus(): void {
  const { runtime, threads: number } = engine.runtime;
  const works = document.body.dataset["offline"] === "yes" ? "works offline" : "";
  at("status").textContent = [`${runtime}, ${threads(number)}`, works].filter(Boolean).join(" · ");
  showFacts(manifest, engine.runtime, here);
}

async function main(): Promise<void> {
  showViews();
  manifest = await readManifest(folder);
  frameCrop();
  showBought(manifest, null);
  showCard(manifest);
  showFacts(manifest, null, here);
  engine = await Engine.start(manifest, base);
  await engine.load("pruned");
  ready();
  await checkGoldens();
  await loadDense();
  void compareTimes()
    .then(improve)
    .catch(notCompared);
  await stayOffline();
}

function ready(): void {
  at("loading").hidden = true;
  at("empty-text").textContent = "Point the camera at something, or drop a photo here";
  document.body.dataset["state"] = "ready";
  offerSamples(manifest, folder, (file) => void look(file));
  show("none");
  showStatus();
  allow();
  at<HTMLButtonElement>("check-run").disabled = false;
  choosePictures((file) => void look(file));
  at("live").addEventListener("click", () => (watching === "no" ? void startLive() : stopLive()));
  at("flip").addEventListener("click", () => void startLive(() => camera.flip(cameraEnded)));
  at("check-run").addEventListener("click", () => (check ? check.abort() : void runCheck()));
  window.addEventListener("hashchange", () => {
    if (watching !== "no" && document.body.dataset["view"] !== "classify") stopLive();
  });
  document.addEventListener("visibilitychange", () => {
    if (document.hidden && watching !== "no") {
      stopLive();
      interrupted = turn;
    } else if (!document.hidden && interrupted === turn && document.body.dataset["view"] === "classify") {
      void startLive();
    }
  });
}

async function checkGoldens(): Promise<void> {
  const [pictures, found] = await engine.checkGoldens();
  goldens = pictures;
  here.golden = {
    unknown: "could not be checked",
    bad: "the numbers differ",
    good: `${found.same} of ${manifest.golden.length} the same, ${found.error?.toPrecision(2)} off`,
  }[found.verdict];
  if (found.verdict === "bad") notice("golden", "error", "This model is not to be trusted here", found.problem!);
  if (found.verdict === "unknown") notice("golden", "warning", "This model could not be checked here", found.problem!);
  showStatus();
  document.body.dataset["golden"] = found.verdict;
}

async function loadDense(): Promise<void> {
  if (!fileOf(manifest, "dense")) return;
  try {
    await engine.load("dense");
  } catch (error) {
    notice("dense", "note", "Only the pruned model is here", messageOf(error));
    return;
  }
  allow();
  at("switch").addEventListener("change", ({ target }) => {
    role = (target as HTMLInputElement).value as Role;
    document.body.dataset["role"] = role;
    void classifyPhoto();
  });
}

/** Change over to the graphics processor, if there is one and it is right and faster. */
async function improve(): Promise<void> {
  if (!("gpu" in navigator)) return;
  while (check) await pause(IDLE_MS);
  const trying = tryGpu(engine, base, goldens);
  trial = trying.catch(() => {});
  const found = await trying;
  if (!(found instanceof Engine)) {
    document.body.dataset["gpu"] = "no";
    here.graphics = `not used: ${found.why}`;
    showStatus();
    // Without a network its part of the runtime may just not be here.
    if (found.failed && navigator.onLine) {
      notice("gpu", "note", "The processor computes", `The graphics processor is not used: ${found.why}.`);
    }
    return;
  }
  while (check) await pause(IDLE_MS);
  const before = engine;
  engine = found;
  times = null;
  document.body.dataset["gpu"] = "yes";
  showStatus();
  void before.retire();
  await Promise.all([compareTimes(), stayOffline()]);
}

/** Back to the processor: the graphics processor has failed, as it may once the device has slept. */
async function leaveGpu(failed: Engine, why: string): Promise<void> {
  const cpu = await Engine.start(manifest, base);
  for (const each of failed.roles) await cpu.load(each);
  engine = cpu;
  failed.stop();
  document.body.dataset["gpu"] = "no";
  here.graphics = `not used: it failed (${why})`;
  showStatus();
  notice("gpu", "note", "The processor computes", `The graphics processor has failed: ${why}.`);
  times = null;
  void compareTimes().catch(notCompared);
}

async function stayOffline(): Promise<void> {
  try {
    const kept = await keepOffline(engine.runtime.files);
    document.body.dataset["offline"] = kept?.offline ? "yes" : "no";
    here.offline = kept?.offline ? "yes" : kept?.why ? `not yet: ${kept.why}` : "no";
    if (kept?.newModel) offerNewModel();
  } catch (error) {
    document.body.dataset["offline"] = "no";
    here.offline = `no: ${messageOf(error)}`;
    console.warn("not kept for offline use:", messageOf(error));
  }
  showStatus();
}

function notCompared(error: unknown): void {
  console.warn("times not taken:", messageOf(error));
}

function offerNewModel(): void {
  const again: [string, () => void] = ["Reload", () => location.reload()];
  notice("update", "note", "A new model is here", "It is used from the next start on.", again);
}

async function failed(error: unknown): Promise<void> {
  supersede();
  document.body.dataset["state"] = "failed";
  for (const id of ["live", "choose", "check-run"]) at<HTMLButtonElement>(id).disabled = true;
  at("loading").hidden = true;
  at("empty-text").textContent = "There is no model to look with.";
  const advice = error instanceof ModelError ? "" : " Load the page again; if that does not help, deploy the model again.";
  notice("model", "error", "The model cannot be used", messageOf(error) + advice);
  // What is kept here would fail at every start: whatever is there instead by now is fetched.
  const kept = await keepOffline([]).catch(() => null);
  document.body.dataset["asked"] = "yes";
  if (kept?.newModel) offerNewModel();
}

main().catch(failed);
