import ClassifierKit
import SwiftUI

/// What the manifest says of the model, and what has been measured.
struct CardView: View {
    let shown: Classifier

    var body: some View {
        List {
            if let manifest = shown.manifest, let file = manifest.file("coreml", .pruned) {
                Section("The model") {
                    LabeledContent("Model", value: manifest.model)
                    LabeledContent("Trained on", value: manifest.dataset)
                    LabeledContent("Sees", value: "\(manifest.input.width) × \(manifest.input.height) pixels")
                    LabeledContent("File", value: "\(file.precision), \(Format.bytes(Double(file.sizeBytes)))")
                    if let params = manifest.params {
                        LabeledContent("Parameters", value: Format.count(Double(params)))
                    }
                    if let top1 = file.measured?.top1 {
                        LabeledContent("Right answers", value: Format.percent(top1 / 100))
                    }
                    LabeledContent("Needs", value: file.minimumRuntime ?? "unknown")
                    LabeledContent("Runs here on", value: shown.runtime)
                }
                budget(file.measured)
                Section("Classes") { ForEach(manifest.labels, id: \.self) { Text(Format.label($0)) } }
                Section("Where it comes from") {
                    LabeledContent("Deployed for", value: manifest.target)
                    LabeledContent("SHA-256", value: file.sha256)
                    ForEach((manifest.tools ?? [:]).sorted { $0.key < $1.key }, id: \.key) { tool in
                        LabeledContent(tool.key, value: tool.value)
                    }
                }
            }
        }
        .navigationTitle("Model card")
    }

    @ViewBuilder private func budget(_ measured: Measured?) -> some View {
        Section(verdict(measured?.verdict)) {
            ForEach(measured?.checks ?? [], id: \.name) { check in
                LabeledContent(
                    check.name.replacingOccurrences(of: "_", with: " "),
                    value: "\(check.value.map(Format.digits) ?? "not measured") (\(Format.digits(check.limit)))"
                )
            }
            if let runtime = measured?.runtime {
                Text(measured?.device.map { "Measured on \($0) with \(runtime)." } ?? "Measured with \(runtime).")
                    .font(.footnote)
            } else {
                Text("Nobody has measured it against a budget.").font(.footnote)
            }
        }
    }

    private func verdict(_ verdict: String?) -> String {
        switch verdict {
        case "pass": return "✓ Budget met"
        case "fail": return "✗ Budget missed"
        default: return "– Budget not measured"
        }
    }
}
