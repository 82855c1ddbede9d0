/** The camera, while it is wanted and the page is in front. */

export class CameraError extends Error {}

const SIZE = { width: { ideal: 1280 }, height: { ideal: 720 } };

export class Camera {
  /** "environment" looks away from whoever holds the device */
  private facing: "environment" | "user" = "environment";
  private stream: MediaStream | null = null;
  private lock: WakeLockSentinel | null = null;

  constructor(private readonly video: HTMLVideoElement) {}

  /** Browsers hide cameras from pages on plain http, except from this machine. */
  static get available(): boolean {
    return window.isSecureContext && navigator.mediaDevices !== undefined;
  }

  /** Raises CameraError with what the user can do. ended: called if the camera goes away */
  async start(ended: () => void): Promise<void> {
    this.stop();
    let stream: MediaStream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ audio: false, video: { ...SIZE, facingMode: this.facing } });
    } catch (error) {
      throw new CameraError(reason(error));
    }
    this.stream = stream;
    stream.getVideoTracks()[0]?.addEventListener("ended", ended);
    this.video.srcObject = stream;
    this.video.classList.toggle("mirrored", stream.getVideoTracks()[0]?.getSettings().facingMode === "user");
    await this.video.play();
    this.lock = (await navigator.wakeLock?.request("screen").catch(() => null)) ?? null;
  }

  async flip(ended: () => void): Promise<void> {
    this.facing = this.facing === "environment" ? "user" : "environment";
    await this.start(ended);
  }

  stop(): void {
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    this.stream = null;
    this.video.srcObject = null;
    void this.lock?.release();
    this.lock = null;
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
    const devices = await navigator.mediaDevices.enumerateDevices();
    return devices.filter(({ kind }) => kind === "videoinput").length > 1;
  }
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
