/** Whether a model computes here what it computes where it was made. */

import { argmax, largestDifference } from "../job";

export interface GoldenCheck {
  /** unknown: there is nothing to hold it against */
  verdict: "good" | "bad" | "unknown";
  /** (G, C) found here */
  logits: number[][];
  /** (G, C) that the artifact gave where it was made; null where nobody knows */
  expected: number[][] | null;
  /** largest difference from those expected; null if there are none, or not as many, or some are no numbers */
  error: number | null;
  /** the largest difference that is allowed; null without expected ones */
  limit: number | null;
  /** pictures with the expected class in front */
  same: number;
  /** what is wrong, as a sentence; null if nothing is */
  problem: string | null;
}

/**
 * expected: (G, C) logits, null where nobody knows them
 * share:    of the largest expected logit, that a difference may have
 */
export function checkGolden(found: number[][], expected: number[][] | null, share: number | undefined): GoldenCheck {
  if (!expected?.length || share === undefined) {
    return unchecked("There are no known answers for this model", found);
  }
  const error = largestDifference(found, expected);
  const limit = share * Math.max(...expected.flat().map(Math.abs));
  const same = found.filter((row, i) => argmax(row) === argmax(expected[i]!)).length;
  let problem: string | null = null;
  if (error === null) problem = "The model gives something else than the numbers that it should.";
  else if (error > limit) {
    const off = `${error.toPrecision(3)} off, ${limit.toPrecision(3)} allowed`;
    problem = `The model computes something else here than where it was made (${off}). Do not trust what it says.`;
  }
  return { verdict: problem ? "bad" : "good", logits: found, expected, error, limit, same, problem };
}

/** why: words in front of a comma */
export function unchecked(why: string, found: number[][] = []): GoldenCheck {
  const problem = `${why}, so nobody can tell whether it works well here.`;
  return { verdict: "unknown", logits: found, expected: null, error: null, limit: null, same: 0, problem };
}
