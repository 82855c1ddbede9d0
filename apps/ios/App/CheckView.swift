import ClassifierKit
import SwiftUI

/// Golden pictures and the time of an inference, by the pipeline's protocol.
struct CheckView: View {
    let shown: Classifier

    var body: some View {
        List {
            Text(
                "Runs the golden pictures and measures the time of an inference. Leave the app in front, and the phone "
                    + "off its charger and cool.")
            if let share = shown.checking {
                ProgressView(value: share)
                Button("Stop") { shown.stopCheck() }
            } else {
                Button("Quick (10 s)") { shown.startCheck(.quick) }
                Button("Full (60 s)") { shown.startCheck(.full) }
            }
            if let problem = shown.checkProblem { Label(problem, systemImage: "exclamationmark.triangle") }
            if let found = shown.checked { result(found) }
        }
        .navigationTitle("Check")
        .onDisappear { shown.stopCheck() }
    }

    @ViewBuilder private func result(_ found: CheckResult) -> some View {
        Section {
            Text(verdict(found.golden))
            if let limit = found.golden.limit {
                Text(
                    "\(found.golden.same) of \(found.golden.count) pictures get the same class. Largest difference of "
                        + "a logit: \(found.golden.error.map(Format.digits) ?? "no number"), "
                        + "\(Format.digits(limit)) allowed."
                ).font(.footnote)
            }
        }
        Section {
            ForEach(Role.allCases.filter { found.times[$0] != nil }, id: \.self) { role in
                Text(row(role, found.times[role]!)).monospacedDigit()
            }
            if let why = Role.allCases.compactMap({ found.times[$0]?.whyInvalid }).first {
                Text("These times do not count: \(why).")
            }
            if let placement = found.placement { Text(placement.words).font(.footnote) }
            Text("before: \(StateWords.of(found.before))").font(.footnote)
            Text("after: \(StateWords.of(found.after))").font(.footnote)
        }
    }

    private func verdict(_ golden: GoldenCheck) -> String {
        switch golden.verdict {
        case .good: return "✓ It computes what it should"
        case .bad: return "✗ It does not compute what it should"
        case .unknown: return "– It could not be checked: there are no known answers for this model"
        }
    }

    private func row(_ role: Role, _ time: LatencyResult) -> String {
        "\(role == .dense ? "Dense" : "Pruned"): p50 \(Format.milliseconds(time.p50Ms)), "
            + "p90 \(Format.milliseconds(time.p90Ms)), mean \(Format.milliseconds(time.meanMs)), "
            + "\(time.samplesMs.count) inferences"
    }
}
