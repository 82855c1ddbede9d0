/** The camera, while it is wanted and the page is in front. */

import { keepAwake } from "./awake";

export class CameraError extends Error {}

const SIZE = { width: { ideal: 1280 }, height: { ideal: 720 } };

export class Camera {
  /** "environment" looks away from whoever holds the device */
  private wanted: MediaTrackConstraints = { facingMode: "environment" };
  private stream: MediaStream | null = null;
  /** of the camera that was on last */
  private settings: MediaTrackSettings = {};
  private sleep = () => {};
  /** counts what has been wanted: a camera that comes late for an earlier one goes off again */
  private generation = 0;

  constructor(private readonly video: HTMLVideoElement) {}

  /** Browsers hide cameras from pages on plain http, except from this machine. */
  static get available(): boolean {
    return window.isSecureContext && navigator.mediaDevices !== undefined;
  }

  /**
   * Returns with the camera on, or off if `stop` or `start` was called meanwhile. Raises CameraError with what the user
   * can do.
   *
   * ended: called if the camera goes away
   */
  async start(ended: () => void): Promise<void> {
    this.stop();
    const mine = this.generation;
    try {
      const stream = await navigator.mediaDevices.getUserMedia({ audio: false, video: { ...SIZE, ...this.wanted } });
      if (mine !== this.generation) return end(stream);
      this.stream = stream;
      this.sleep = keepAwake();
      const track = stream.getVideoTracks()[0]!;
      track.addEventListener("ended", ended);
      this.settings = track.getSettings();
      this.video.srcObject = stream;
      this.video.classList.toggle("mirrored", this.settings.facingMode === "user");
      await this.video.play();
    } catch (error) {
      if (mine === this.generation) throw new CameraError(reason(error));
    }
  }

  /** The camera on the other side; where none says which side it is on, the next one. */
  async flip(ended: () => void): Promise<void> {
    this.stop();
    const mine = this.generation;
    const { facingMode, deviceId } = this.settings;
    if (facingMode) {
      this.wanted = { facingMode: facingMode === "user" ? "environment" : "user" };
    } else {
      const ids = (await cameras()).map((camera) => camera.deviceId);
      if (mine !== this.generation) return;
      this.wanted = { deviceId: { exact: ids[(ids.indexOf(deviceId ?? "") + 1) % ids.length]! } };
    }
    await this.start(ended);
  }

  stop(): void {
    this.generation++;
    if (this.stream) end(this.stream);
    this.stream = null;
    this.video.srcObject = null;
    this.sleep();
    this.sleep = () => {};
  }

  /** The newest frame, once there is a new one. */
  async frame(): Promise<ImageBitmap> {
    await new Promise<void>((resolve) => {
      if (this.video.requestVideoFrameCallback) this.video.requestVideoFrameCallback(() => resolve());
      else requestAnimationFrame(() => resolve());
    });
    return createImageBitmap(this.video);
  }

  /** Whether there is another one to switch to; known once the camera may be used. */
  static async several(): Promise<boolean> {
    return (await cameras()).length > 1;
  }
}

async function cameras(): Promise<MediaDeviceInfo[]> {
  return (await navigator.mediaDevices.enumerateDevices()).filter(({ kind }) => kind === "videoinput");
}

function end(stream: MediaStream): void {
  for (const track of stream.getTracks()) track.stop();
}

function reason(error: unknown): string {
  const name = error instanceof Error ? error.name : "";
  if (name === "NotAllowedError") {
    return "This page may not use the camera. Allow it in the browser's settings for this site, or choose a photo.";
  }
  if (name === "NotFoundError" || name === "OverconstrainedError") return "There is no camera here. Choose a photo.";
  if (name === "NotReadableError") return "Another app has the camera. Close that, or choose a photo.";
  return `The camera does not start (${error instanceof Error ? error.message : String(error)}). Choose a photo.`;
}
