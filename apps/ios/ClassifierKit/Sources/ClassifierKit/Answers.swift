import Foundation

/// Place of the largest value, the first of several; of the first that is not a number, as numpy has it.
func argmax(_ values: [Float]) -> Int {
    var best = 0
    for i in values.indices {
        if values[i].isNaN { return i }
        if values[i] > values[best] { best = i }
    }
    return best
}

/// Places of the `count` largest, the largest first; of equal ones the first first. What is no number comes last.
func best(_ values: [Float], _ count: Int) -> [Int] {
    let keys = values.map { $0.isNaN ? -Float.infinity : $0 }
    return Array(values.indices.sorted { keys[$0] == keys[$1] ? $0 < $1 : keys[$0] > keys[$1] }.prefix(count))
}

/// Probabilities of logits.
func softmax(_ logits: [Float]) -> [Float] {
    guard let largest = logits.max() else { return logits }
    let powers = logits.map { exp(Double($0 - largest)) }
    let sum = powers.reduce(0, +)
    return powers.map { Float($0 / sum) }
}

/// Largest absolute difference; nil for logits that are no numbers, or of another shape.
func largestDifference(_ found: [[Float]], _ expected: [[Double]]) -> Double? {
    if found.count != expected.count { return nil }
    var largest = 0.0
    for (row, other) in zip(found, expected) {
        if row.count != other.count || !row.allSatisfy(\.isFinite) { return nil }
        for (value, wanted) in zip(row, other) { largest = max(largest, abs(Double(value) - wanted)) }
    }
    return largest
}

/// Share of the rows whose largest logit is the label's; a row in which something is no number is wrong.
func top1(_ logits: [[Float]], _ labels: [Int]) -> Double {
    let right = zip(logits, labels).filter { row, label in row.allSatisfy(\.isFinite) && argmax(row) == label }
    return Double(right.count) / Double(labels.count)
}

/// Whether a model computes here what it computes where it was made.
public struct GoldenCheck: Sendable {
    public enum Verdict: Sendable { case good, bad, unknown }

    /// pictures that were tried
    public let count: Int
    /// largest difference; nil without expected logits, or if some are no numbers
    public let error: Double?
    /// nil where nobody knows what to expect
    public let limit: Double?
    /// pictures with the expected class in front
    public let same: Int

    public var verdict: Verdict {
        guard let limit else { return .unknown }
        guard let error, error <= limit else { return .bad }
        return .good
    }

    /// Hold logits against those that the manifest has of the artifact.
    init(_ manifest: Manifest, _ file: String, _ found: [[Float]]) {
        count = found.count
        let expected = manifest.golden.compactMap { $0.artifacts[file] }
        guard !expected.isEmpty, expected.count == manifest.golden.count, let share = manifest.goldenShare?[file] else {
            (error, limit, same) = (nil, nil, 0)
            return
        }
        error = largestDifference(found, expected)
        limit = share * expected.flatMap { $0 }.map(abs).max()!
        same = zip(found, expected).filter { argmax($0) == argmax($1.map(Float.init)) }.count
    }
}
