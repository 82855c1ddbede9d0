/** The page: loads the model, and brings pictures to it and answers back. */

import type { Pixels } from "../inference";
import { messageOf } from "../messages";
import { showAnswer, showFigures } from "./answer";
import { glance, showBought, type Times } from "./bought";
import { Camera, CameraError } from "./camera";
import { showCard, threads } from "./card";
import { at, make } from "./dom";
import { Engine, tryGpu } from "./engine";
import { milliseconds } from "./format";
import type { GoldenCheck } from "./golden";
import { addressOf, fileOf, type Manifest, ModelError, readManifest, type Role } from "./manifest";
import { clear, notice } from "./notices";
import { keepOffline } from "./offline";
import { choosePictures } from "./pictures";
import { Recent } from "./recent";
import { validate } from "./validation";
import { showViews } from "./views";

const base = new URL("./", location.href).href;
const folder = `${base}model/`;
/** Longer side of a photo as it is shown, pixels. */
const PREVIEW = 1280;
/** Text that changes faster than this cannot be read. */
const SHOW_MS = 120;
/** How often it is looked whether nobody wants anything. */
const IDLE_MS = 500;
/** What has been asked of an engine is done by then. */
const GRACE_MS = 10_000;
/** Inferences of a photo that are timed, behind one that wakes threads and fills caches. */
const PHOTO_RUNS = 5;

const video = at<HTMLVideoElement>("video");
const camera = new Camera(video);
let manifest: Manifest;
let engine: Engine;
let goldenCheck: GoldenCheck | null = null;
let times: Times | null = null;
let role: Role = "pruned";
/** the photo on show */
let photo: { pixels: Pixels; size: string } | null = null;
let live = false;
/** counts what is on show: what comes late for an earlier one is dropped */
let turn = 0;
let checking = false;
/** "works offline" once it does */
let offline = "";
/** why the graphics processor is not used */
let noGpu = "";

// Photos

async function look(source: Blob): Promise<void> {
  stopLive();
  const mine = ++turn;
  clear("picture");
  at("busy").hidden = false;
  try {
    const prepared = await engine.prepare(source, PREVIEW);
    if (mine !== turn) return;
    photo = { pixels: prepared.pixels, size: `${prepared.width} × ${prepared.height}` };
    const canvas = at<HTMLCanvasElement>("photo");
    canvas.width = prepared.preview!.width;
    canvas.height = prepared.preview!.height;
    canvas.getContext("bitmaprenderer")!.transferFromImageBitmap(prepared.preview);
    show("photo");
    await classifyPhoto();
  } catch (error) {
    if (mine === turn) notice("picture", "warning", "That did not work", messageOf(error));
  } finally {
    if (mine === turn) at("busy").hidden = true;
  }
}

async function classifyPhoto(): Promise<void> {
  if (!photo) return;
  const mine = turn;
  const { pixels, size } = photo;
  const of = role;
  const { logits } = await engine.time(of, pixels);
  if (mine !== turn || of !== role) return;
  showAnswer(manifest.labels, logits);
  const recent = new Recent();
  for (let i = 0; i < PHOTO_RUNS; i++) {
    recent.add((await engine.time(of, pixels)).milliseconds, performance.now());
    if (mine !== turn || of !== role) return;
  }
  showFigures([["inference, p50", milliseconds(recent.p50)], ["picture", size]]);
}

// Camera

async function startLive(begin: () => Promise<void> = () => camera.start(cameraEnded)): Promise<void> {
  clear("camera");
  clear("picture");
  if (!Camera.available) {
    at("shot").click();
    return;
  }
  const mine = ++turn;
  try {
    await begin();
  } catch (error) {
    stopLive();
    notice("camera", "warning", "No camera", error instanceof CameraError ? error.message : messageOf(error));
    return;
  }
  if (mine !== turn) return;
  live = true;
  photo = null;
  show("camera");
  at("flip").hidden = !(await Camera.several());
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
      const { logits, milliseconds: taken } = await engine.time(role, pixels);
      if (mine !== turn) return;
      const now = performance.now();
      recent.add(taken, now);
      if (now - shownAt < SHOW_MS) continue;
      shownAt = now;
      showAnswer(manifest.labels, logits);
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
  turn++;
  camera.stop();
  if (live) show("none");
  live = false;
  at("flip").hidden = true;
}

function cameraEnded(): void {
  stopLive();
  notice("camera", "warning", "The camera stopped", "It was taken away. Start it again, or choose a photo.");
}

/** none, photo or camera */
function show(source: string): void {
  document.body.dataset["source"] = source;
  at("empty").hidden = source !== "none";
  at("photo").hidden = source !== "photo";
  video.hidden = source !== "camera";
  at("crop").hidden = source === "none";
  const [use, text] = [at("live").querySelector("use")!, at("live").querySelector("span")!];
  use.setAttribute("href", source === "camera" ? "#i-stop" : "#i-camera");
  text.textContent = source === "camera" ? "Stop" : Camera.available ? "Camera" : "Take photo";
  if (source === "none") {
    at("top").hidden = at("figures").hidden = true;
    at("samples").hidden = manifest.golden.length === 0;
  }
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

function offerSamples(): void {
  const items = manifest.golden.slice(0, 8).map((golden, i) => {
    const image = document.createElement("img");
    image.src = addressOf(folder, golden);
    image.alt = "";
    const button = make("button", "", "", image);
    button.ariaLabel = `Test picture ${i + 1}`;
    button.addEventListener("click", async () => {
      const response = await fetch(image.src).catch(() => null);
      if (response?.ok) await look(await response.blob());
    });
    return make("li", "", "", button);
  });
  at("sample-list").replaceChildren(...items);
}

/** Take the time of both models while nobody wants anything else. */
async function compareTimes(picture: Pixels | undefined): Promise<void> {
  const idle = () => !live && !checking && !document.hidden && at("busy").hidden === true;
  while (picture && engine.roles.size === 2 && !times) {
    times = idle() ? await glance(engine, picture, idle) : null;
    if (!times) await pause(IDLE_MS);
  }
  showBought(manifest, times);
}

async function runCheck(): Promise<void> {
  checking = true;
  stopLive();
  at<HTMLButtonElement>("check-run").disabled = true;
  at("check-progress").hidden = false;
  at("check-save").hidden = at("check-share").hidden = true;
  try {
    const chosen = document.querySelector<HTMLInputElement>("input[name=protocol]:checked")!.value;
    offer(await validate(engine, folder, chosen));
  } catch (error) {
    notice("check", "warning", "The check broke off", messageOf(error));
  } finally {
    checking = false;
    at("check-progress").hidden = true;
    at<HTMLButtonElement>("check-run").disabled = false;
  }
}

/** The result of a check as a file. */
function offer(result: object): void {
  const file = new File([JSON.stringify(result, null, 2)], "classifier-check.json", { type: "application/json" });
  const save = at<HTMLButtonElement>("check-save");
  save.hidden = false;
  save.onclick = () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(file);
    link.download = file.name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  const share = at<HTMLButtonElement>("check-share");
  share.hidden = !navigator.canShare?.({ files: [file] });
  share.onclick = () => void navigator.share({ files: [file] }).catch(() => {}); // whoever shares may change their mind
}

function showStatus(): void {
  const { runtime, threads: number } = engine.runtime;
  at("status").textContent = [`${runtime}, ${threads(number)}`, offline].filter(Boolean).join(" · ");
  showCard(manifest, engine.runtime, goldenWords(), noGpu && `not used: ${noGpu}`);
}

async function main(): Promise<void> {
  showViews();
  manifest = await readManifest(folder);
  frameCrop();
  showBought(manifest, null);
  showCard(manifest, null, goldenWords(), "");
  engine = await Engine.start(manifest, base);
  await engine.load("pruned");
  ready();
  const pictures = await engine.goldens();
  goldenCheck = await engine.check(pictures);
  if (goldenCheck.problem) notice("golden", "error", "This model is not to be trusted here", goldenCheck.problem);
  showStatus();
  document.body.dataset["golden"] = goldenCheck.problem ? "bad" : "good";
  await loadDense();
  void compareTimes(pictures[0]).then(() => improve(pictures));
  await stayOffline();
}

function ready(): void {
  for (const id of ["live", "choose", "check-run"]) at<HTMLButtonElement>(id).disabled = false;
  at("loading").hidden = true;
  at("empty-text").textContent = "Point the camera at something, or drop a photo here";
  document.body.dataset["state"] = "ready";
  offerSamples();
  show("none");
  showStatus();
  choosePictures((file) => void look(file));
  at("live").addEventListener("click", () => (live ? stopLive() : void startLive()));
  at("flip").addEventListener("click", () => void startLive(() => camera.flip(cameraEnded)));
  at("check-run").addEventListener("click", () => void runCheck());
  window.addEventListener("hashchange", () => {
    if (live && document.body.dataset["view"] !== "classify") stopLive();
  });
  document.addEventListener("visibilitychange", () => {
    if (document.hidden && live) {
      stopLive();
      document.addEventListener("visibilitychange", () => void startLive(), { once: true });
    }
  });
}

async function loadDense(): Promise<void> {
  if (!fileOf(manifest, "dense")) return;
  try {
    await engine.load("dense");
  } catch (error) {
    notice("dense", "note", "Only the pruned model is here", messageOf(error));
    return;
  }
  at<HTMLFieldSetElement>("switch").disabled = false;
  at("switch").addEventListener("change", ({ target }) => {
    role = (target as HTMLInputElement).value as Role;
    document.body.dataset["role"] = role;
    void classifyPhoto();
  });
}

/** Change over to the graphics processor, if there is one and it is right and faster. */
async function improve(pictures: Pixels[]): Promise<void> {
  if (!("gpu" in navigator)) return;
  const found = await tryGpu(engine, base, pictures);
  document.body.dataset["gpu"] = found instanceof Engine ? "yes" : "no";
  if (!(found instanceof Engine)) {
    noGpu = found.why;
    showStatus();
    if (found.failed) notice("gpu", "note", "The processor computes", `The graphics processor is not used: ${noGpu}.`);
    return;
  }
  while (checking) await pause(IDLE_MS);
  const before = engine;
  engine = found;
  setTimeout(() => before.stop(), GRACE_MS);
  times = null;
  showStatus();
  await compareTimes(pictures[0]);
}

async function stayOffline(): Promise<void> {
  try {
    const kept = await keepOffline(engine.runtime.files);
    document.body.dataset["offline"] = kept?.offline ? "yes" : "no";
    offline = kept?.offline ? "works offline" : "";
    showStatus();
    if (kept?.newModel) {
      const again: [string, () => void] = ["Reload", () => location.reload()];
      notice("update", "note", "A new model is here", "It is used from the next start on.", again);
    }
  } catch (error) {
    document.body.dataset["offline"] = "no";
    console.warn("not kept for offline use:", messageOf(error));
  }
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

function goldenWords(): string {
  if (!goldenCheck) return "not looked at yet";
  if (goldenCheck.problem) return "the numbers differ";
  return `${goldenCheck.same} of ${manifest.golden.length} right, ${goldenCheck.error!.toPrecision(2)} off`;
}

main().catch((error: unknown) => {
  document.body.dataset["state"] = "failed";
  at("loading").hidden = true;
  at("empty-text").textContent = "There is no model to look with.";
  const advice = error instanceof ModelError ? "" : " Load the page again; if that does not help, deploy the model again.";
  notice("model", "error", "The model cannot be used", messageOf(error) + advice);
});
