import Foundation

/// The measuring protocol of targets/latency.py, with the same statistics. Names in results are the contract's.
public struct Timing: Sendable {
    public let name: String
    /// length of the measured window; at most `patience` times that
    public let seconds: Double
    /// of every callable; fewer stop early
    public let minSamples: Int
    /// rounds that are not counted
    public let warmup: Int
    /// rest before the measurement
    public let cooldownS: Double

    public static let full = Timing(name: "full", seconds: 60, minSamples: 1024, warmup: 32, cooldownS: 10)
    public static let quick = Timing(name: "quick", seconds: 10, minSamples: 128, warmup: 10, cooldownS: 1)
    /// Where something stands in for the device its time says nothing: a few inferences show that it runs.
    static let emulated = Timing(name: "emulated", seconds: 0, minSamples: 1, warmup: 0, cooldownS: 0)
}

/// A run that has not got its samples after this many times the asked duration stops: the device is too slow.
private let patience = 3.0
private let earlySamples = 64
/// When one inference in ten takes this many times the median or longer, the phone did something else meanwhile.
private let spreadMax = 5.0

/// See LatencyResult in targets/latency.py.
public struct LatencyResult: Sendable {
    public let p5Ms: Double
    public let p50Ms: Double
    public let p90Ms: Double
    public let meanMs: Double
    public let p90BoundMs: Double
    public let seconds: Double
    /// nil if it is valid
    public let whyInvalid: String?
    public let samplesMs: [Double]

    /// The same figures, not to be believed.
    func invalid(_ why: String) -> LatencyResult {
        LatencyResult(
            p5Ms: p5Ms, p50Ms: p50Ms, p90Ms: p90Ms, meanMs: meanMs, p90BoundMs: p90BoundMs, seconds: seconds,
            whyInvalid: whyInvalid ?? why, samplesMs: samplesMs
        )
    }

    var json: Json {
        .object([
            "p5_ms": .number(p5Ms),
            "p50_ms": .number(p50Ms),
            "p90_ms": .number(p90Ms),
            "mean_ms": .number(meanMs),
            "p90_bound_ms": .number(p90BoundMs),
            "samples": .whole(samplesMs.count),
            "seconds": .number(seconds),
            "valid": .truth(whyInvalid == nil),
            "why_invalid": .orNull(whyInvalid, Json.text),
            "samples_ms": .list(samplesMs.map(Json.number)),
        ])
    }
}

/// Run every callable in turn as the protocol says, one inference each (a, b, a, b, ...).
///
/// progress: told the seconds that have been measured; what it takes is not timed; it may throw to stop
func measure(
    _ callables: [(name: String, run: () throws -> Void)],
    _ asked: Timing,
    _ progress: (Double) throws -> Void = { _ in }
) throws -> [String: LatencyResult] {
    precondition(!callables.isEmpty, "measure needs at least one callable")
    try progress(0)
    Thread.sleep(forTimeInterval: asked.cooldownS)
    try progress(0)
    for _ in 0..<asked.warmup { for callable in callables { try callable.run() } }
    var samples = [[Int]](repeating: [], count: callables.count)
    let clock = ContinuousClock()
    let begin = clock.now
    var (elapsed, rounds) = (0.0, 0)
    let longest = patience * asked.seconds
    while rounds == 0 || elapsed < asked.seconds || (rounds < asked.minSamples && elapsed < longest) {
        for (i, callable) in callables.enumerated() {
            let start = clock.now
            try callable.run()
            samples[i].append(nanoseconds(clock.now - start))
        }
        rounds += 1
        elapsed = Double(nanoseconds(clock.now - begin)) / 1e9
        try progress(elapsed)
    }
    var found: [String: LatencyResult] = [:]
    for (callable, taken) in zip(callables, samples) {
        found[callable.name] = summarise(taken, elapsed, asked.minSamples)
    }
    return found
}

func nanoseconds(_ duration: Duration) -> Int {
    let (seconds, attoseconds) = duration.components
    return Int(seconds) * 1_000_000_000 + Int(attoseconds / 1_000_000_000)
}

/// Percentiles of the samples (at least one), and whether they can be trusted; the rules of targets/latency.py.
public func summarise(_ samplesNs: [Int], _ seconds: Double, _ minSamples: Int) -> LatencyResult {
    precondition(!samplesNs.isEmpty, "a latency needs at least one sample")
    let samples = samplesNs.map { Double($0) / 1e6 }
    let sorted = samples.sorted()
    let (p50, p90) = (percentile(sorted, 0.5), percentile(sorted, 0.9))
    let shortest = samplesNs.min()!
    var why: String?
    if shortest <= 0 {
        why = "the clock showed \(shortest) ns for an inference"
    } else if samples.count < min(minSamples, earlySamples) {
        let atLeast = minSamples > earlySamples ? ", \(earlySamples) at least" : ""
        why = "\(samples.count) samples in \(Format.fixed(seconds, 1)) s, \(minSamples) needed\(atLeast)"
    } else if p90 > spreadMax * p50 {
        let times = Format.fixed(p90 / p50, 1)
        let most = Format.fixed(spreadMax, 0)
        why = "p90 is \(times) times the median, at most \(most) allowed: the machine was busy"
    }
    return LatencyResult(
        p5Ms: percentile(sorted, 0.05), p50Ms: p50, p90Ms: p90,
        meanMs: samples.reduce(0, +) / Double(samples.count),
        p90BoundMs: samples.count >= minSamples ? p90 : max(p90, p90Bound(sorted)),
        seconds: seconds, whyInvalid: why, samplesMs: samples
    )
}

/// Linear between the two nearest samples, as numpy's default.
public func percentile(_ sorted: [Double], _ share: Double) -> Double {
    let place = Double(sorted.count - 1) * share
    let below = Int(place)
    let above = min(below + 1, sorted.count - 1)
    return sorted[below] + (sorted[above] - sorted[below]) * (place - Double(below))
}

/// Upper end of the one-sided 99 % confidence interval of the 90th percentile; the maximum if there are too few.
private func p90Bound(_ sorted: [Double]) -> Double {
    let n = sorted.count
    var logOfP = Double(n) * log(0.1)  // of P(Binomial(n, 0.9) = 0)
    var below = 0.0
    for k in 0..<n {
        below += exp(logOfP)
        if below >= 0.99 { return sorted[k] }
        logOfP += log(Double(n - k) / Double(k + 1)) + log(0.9 / 0.1)
    }
    return sorted[n - 1]
}
