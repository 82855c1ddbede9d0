/** What this browser tells of the device that it runs on. */

/** As DeviceResult.device in targets/devices/job.py has it; null: the browser does not tell. */
export interface Description {
  device: string;
  os: string;
  cpu: null;
  cores: number;
  arch: string | null;
  emulated: null;
}

/** As `conditions` in targets/latency.py has it. */
export interface Conditions {
  governor: null;
  temperature_c: null;
  throttled: null;
  battery: string | null;
}

// Not in TypeScript's library: not every browser has them, and none has them on plain http.
interface HighEntropy {
  model?: string;
  platform?: string;
  platformVersion?: string;
  architecture?: string;
  bitness?: string;
  fullVersionList?: { brand: string; version: string }[];
}
interface MoreNavigator {
  userAgentData?: { getHighEntropyValues(hints: string[]): Promise<HighEntropy> };
  getBattery?(): Promise<{ level: number; charging: boolean }>;
}
const more = navigator as MoreNavigator;

export async function describe(): Promise<Description> {
  const hints = ["model", "platform", "platformVersion", "architecture", "bitness", "fullVersionList"];
  const told = (await more.userAgentData?.getHighEntropyValues(hints)) ?? {};
  const guess = fromUserAgent(navigator.userAgent, navigator.maxTouchPoints);
  const brands = (told.fullVersionList ?? []).filter(({ brand }) => !/not.?a.?brand/i.test(brand));
  const brand = brands.find(({ brand }) => brand !== "Chromium") ?? brands[0];
  const browser = brand ? `${brand.brand} ${brand.version}` : guess.browser;
  const model = told.model || guess.model;
  return {
    device: model ? `${model}, ${browser}` : browser,
    os: told.platform ? `${told.platform} ${told.platformVersion ?? ""}`.trim() : guess.os,
    cpu: null,
    cores: navigator.hardwareConcurrency,
    arch: told.architecture ? `${told.architecture} ${told.bitness ?? ""}`.trim() : null,
    emulated: null,
  };
}

export async function conditions(): Promise<Conditions> {
  const battery = await more.getBattery?.();
  return {
    governor: null,
    temperature_c: null,
    throttled: null,
    battery: battery ? `${Math.round(100 * battery.level)} % ${battery.charging ? "charging" : "discharging"}` : null,
  };
}

/** Most specific first: every browser claims to be some of the others too. */
const BROWSERS: [RegExp, string][] = [
  [/(?:Edg|EdgA|EdgiOS)\/([\d.]+)/, "Edge"],
  [/SamsungBrowser\/([\d.]+)/, "Samsung Internet"],
  [/OPR\/([\d.]+)/, "Opera"],
  [/(?:Firefox|FxiOS)\/([\d.]+)/, "Firefox"],
  [/(?:HeadlessChrome|Chrome|CriOS)\/([\d.]+)/, "Chrome"],
  [/Version\/([\d.]+).*Safari/, "Safari"],
];

function fromUserAgent(text: string, touchPoints: number): { browser: string; os: string; model: string | null } {
  const [pattern, name] = BROWSERS.find(([pattern]) => pattern.test(text)) ?? [/$^/, "a browser"];
  const browser = `${name} ${pattern.exec(text)?.[1] ?? ""}`.trim();
  const android = /Android ([\d.]+)(?:; ([^;)]+))?/.exec(text);
  if (android) {
    const model = android[2]?.replace(/ Build\/.*/, "").trim();
    return { browser, os: `Android ${android[1]}`, model: model && model !== "K" ? model : null }; // K: withheld
  }
  const ios = /(iPhone|iPad|iPod).* OS ([\d_]+)/.exec(text);
  if (ios) return { browser, os: `iOS ${ios[2]!.replaceAll("_", ".")}`, model: ios[1]! };
  // An iPad says that it is a Mac; no Mac has a touch screen.
  if (text.includes("Macintosh") && touchPoints > 1) return { browser, os: "iPadOS", model: "iPad" };
  if (text.includes("Macintosh")) return { browser, os: "macOS", model: null };
  const os = ["Windows", "CrOS", "Linux"].find((name) => text.includes(name)) ?? "unknown";
  return { browser, os, model: null };
}
