/**
 * Keeps the app and its model for starts without a network. Has no imports: it is served as a classic script.
 *
 * The app's files lie in a cache of their own build. A new build is fetched beside the old one and serves from the
 * next load on. The model's files lie at addresses with their checksums; its manifest is exchanged last, so that a
 * page finds either the old model or the new one, whole.
 */

interface Extendable extends Event {
  waitUntil(work: Promise<unknown>): void;
}
interface Fetched extends Extendable {
  request: Request;
  respondWith(answer: Promise<Response>): void;
}
interface Told extends Extendable {
  data: { keep: string[]; page: string };
  ports: MessagePort[];
}
interface Scope {
  addEventListener(name: "install" | "activate", take: (event: Extendable) => void): void;
  addEventListener(name: "fetch", take: (event: Fetched) => void): void;
  addEventListener(name: "message", take: (event: Told) => void): void;
  skipWaiting(): Promise<void>;
  clients: { claim(): Promise<void> };
  registration: { scope: string };
}
interface Named {
  file: string;
  sha256: string;
  format?: string;
}

// Both are filled in by the build: every file that any page needs, and a digest of all that was built.
declare const __FILES__: string[];
declare const __BUILD__: string;

const scope = self as unknown as Scope;
const base = scope.registration.scope;
const shell = `app ${__BUILD__}`;
const MODEL = "model";
const MANIFEST = `${base}model/manifest.json`;

scope.addEventListener("install", (event) => event.waitUntil(install()));
scope.addEventListener("activate", (event) => event.waitUntil(scope.clients.claim()));
scope.addEventListener("message", (event) => event.waitUntil(keep(event)));
scope.addEventListener("fetch", (event) => {
  const { method, url } = event.request;
  if (method === "GET" && url.startsWith(base)) event.respondWith(answer(event.request));
});

async function install(): Promise<void> {
  const cache = await caches.open(shell);
  // What the browser's abilities made an earlier build need, this one needs too.
  const earlier = await Promise.all((await shells()).map(async (name) => (await caches.open(name)).keys()));
  const more = earlier.flat().filter(({ url }) => url.startsWith(`${base}litert/`));
  const wanted = new Set([...__FILES__.map((file) => base + file), ...more.map(({ url }) => url)]);
  try {
    await Promise.all([...wanted].map((url) => copy(cache, url)));
  } catch (error) {
    await caches.delete(shell); // a part of a build is of no use to anybody
    throw error;
  }
  await scope.skipWaiting();
}

async function answer(request: Request): Promise<Response> {
  const url = request.url.split("#")[0]!;
  const page = request.mode === "navigate" && [base, `${base}index.html`].includes(url.split("?")[0]!);
  const kept = await (await caches.open(shell)).match(page ? base : url);
  if (kept) return kept;
  if (url.startsWith(`${base}model/`)) {
    const model = await (await caches.open(MODEL)).match(url);
    if (model) return model;
  }
  const found = await fetch(request).catch((error: unknown) => error);
  if (found instanceof Response && found.status !== 404) return found;
  // No network, or the server has but the newest build: a page of an earlier one may still run.
  const old = await caches.match(url);
  if (old) return old;
  if (found instanceof Response) return found;
  throw found;
}

/** Keep what a page has needed, bring the model up to date, and let go of what no page needs any more. */
async function keep(event: Told): Promise<void> {
  const { keep: files, page } = event.data;
  const cache = await caches.open(shell);
  const known = __FILES__.map((file) => base + file);
  const ours = known.includes(page);
  let newModel = false;
  let why: string | null = null;
  try {
    for (const url of [...known, ...files]) if (!(await cache.match(url))) await copy(cache, url);
    if (ours) for (const name of await shells()) if (name !== shell) await caches.delete(name);
  } catch (error) {
    why = String(error);
  }
  try {
    newModel = await updateModel();
  } catch (error) {
    why ??= String(error); // no network, a deployment that is under way, no room: what there is stays
  }
  const offline = ours && (await isWhole(cache, [...known, ...files])) && (await hasModel());
  event.ports[0]?.postMessage({ offline, newModel, why });
}

async function isWhole(cache: Cache, urls: Iterable<string>): Promise<boolean> {
  for (const url of urls) if (!(await cache.match(url))) return false;
  return true;
}

async function hasModel(): Promise<boolean> {
  const cache = await caches.open(MODEL);
  const manifest = await cache.match(MANIFEST);
  return manifest !== undefined && isWhole(cache, addresses(await manifest.text()).keys());
}

/** Whether the model is another one than before. Raises if a file does not arrive whole. */
async function updateModel(): Promise<boolean> {
  const cache = await caches.open(MODEL);
  const before = await cache.match(MANIFEST);
  const response = await fetch(MANIFEST, { cache: "reload" }); // asked for its date, an older one would go unnoticed
  if (!response.ok) throw new Error(`${MANIFEST}: ${response.status}`);
  const text = await response.clone().text();
  const old = before && (await before.text());
  const wanted = addresses(text);
  const added: string[] = [];
  try {
    for (const [url, sha256] of wanted) {
      if (await cache.match(url)) continue;
      const file = await fetch(url);
      if (!file.ok || (await digest(await file.clone().arrayBuffer())) !== sha256) throw new Error(`${url} is damaged`);
      added.push(url);
      await cache.put(url, file);
    }
    await cache.put(MANIFEST, response);
  } catch (error) {
    for (const url of added) await cache.delete(url); // a part of a model takes room for nothing
    throw error;
  }
  // The page that runs may still fetch files of the old model: they go at the next start.
  const used = new Set([MANIFEST, ...wanted.keys(), ...(old ? addresses(old).keys() : [])]);
  for (const { url } of await cache.keys()) if (!used.has(url)) await cache.delete(url);
  return old !== undefined && old !== text;
}

/** URL -> checksum of the files that this app needs. */
function addresses(manifest: string): Map<string, string> {
  // An earlier manifest may be of another version: it must not hold up the new one.
  const { files = [], golden = [] } = JSON.parse(manifest) as { files?: Named[]; golden?: Named[] };
  const needed = [...files.filter(({ format }) => format === "tflite"), ...golden];
  return new Map(needed.map(({ file, sha256 }) => [`${base}model/${file}?sha256=${sha256}`, sha256]));
}

async function shells(): Promise<string[]> {
  return (await caches.keys()).filter((name) => name.startsWith("app "));
}

async function copy(cache: Cache, url: string): Promise<void> {
  const large = url.startsWith(`${base}litert/`); // and there already, as a rule: the page has just loaded it
  const response = await fetch(url, { cache: large ? "no-cache" : "reload" });
  if (!response.ok) throw new Error(`${url}: ${response.status}`);
  await cache.put(url, response);
}

async function digest(content: ArrayBuffer): Promise<string> {
  const bytes = new Uint8Array(await crypto.subtle.digest("SHA-256", content));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
