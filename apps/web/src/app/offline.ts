/** The page's side of the service worker. */

/** What the worker answers once it has looked after the files. */
export interface Kept {
  /** everything is there for a start without a network */
  offline: boolean;
  /** another model than the one that runs is ready for the next start */
  newModel: boolean;
  /** what could not be fetched or kept; null if nothing is amiss */
  why: string | null;
}

/**
 * Have the app and its model kept on this device. Null where browsers do not have that, as on plain http.
 *
 * files: URLs that this page needed, beside those that every page needs
 */
export async function keepOffline(files: string[]): Promise<Kept | null> {
  if (!("serviceWorker" in navigator)) return null;
  const { active, waiting, installing } = await navigator.serviceWorker.register("./sw.js", { updateViaCache: "none" });
  const worker = active ?? (await activated((waiting ?? installing)!));
  const channel = new MessageChannel();
  const answer = new Promise<Kept>((resolve) => {
    channel.port1.onmessage = ({ data }: MessageEvent<Kept>) => resolve(data);
  });
  void navigator.storage?.persist?.(); // else a browser short of room may throw it away
  worker.postMessage({ keep: files, page: import.meta.url }, [channel.port2]);
  return answer;
}

function activated(worker: ServiceWorker): Promise<ServiceWorker> {
  return new Promise((resolve, reject) => {
    worker.addEventListener("statechange", () => {
      if (worker.state === "activated") resolve(worker);
      if (worker.state === "redundant") reject(new Error("not all of the app could be fetched and kept"));
    });
  });
}
