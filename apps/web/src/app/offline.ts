/** The page's side of the service worker. */

/** What the worker answers once it has looked after the files. */
export interface Kept {
  /** everything is there for a start without a network */
  offline: boolean;
  /** another model than the one that runs is ready for the next start */
  newModel: boolean;
}

/**
 * Have the app and its model kept on this device. Null where browsers do not have that, as on plain http.
 *
 * files: URLs that this page needed, beside those that every page needs
 */
export async function keepOffline(files: string[]): Promise<Kept | null> {
  if (!("serviceWorker" in navigator)) return null;
  await navigator.serviceWorker.register("./sw.js", { updateViaCache: "none" });
  const { active } = await navigator.serviceWorker.ready;
  const channel = new MessageChannel();
  const answer = new Promise<Kept>((resolve) => {
    channel.port1.onmessage = ({ data }: MessageEvent<Kept>) => resolve(data);
  });
  active!.postMessage({ keep: files, page: import.meta.url }, [channel.port2]);
  return answer;
}
