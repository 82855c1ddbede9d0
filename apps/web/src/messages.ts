/** What an exception says; LiteRT throws strings and numbers too. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message || error.name : String(error);
}
