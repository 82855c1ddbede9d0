/** Keep the screen on until what is returned is called; where browsers can. */
export function keepAwake(): () => void {
  const asked = navigator.wakeLock?.request("screen").catch(() => null);
  return () => void asked?.then((lock) => lock?.release());
}
