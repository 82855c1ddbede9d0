import ClassifierKit
import PhotosUI
import SwiftUI

/// The camera or a photo, and what the model says of it.
struct MainView: View {
    let shown: Classifier
    @State private var chosen: PhotosPickerItem?
    @State private var role = Role.pruned
    @State private var units = ComputeUnits.all
    @Environment(\.scenePhase) private var phase
    @Environment(\.openURL) private var openURL

    var body: some View {
        NavigationStack {
            List {
                switch shown.state {
                case .loading: ProgressView("Loading the model…")
                case .failed(let why): Label(why, systemImage: "exclamationmark.triangle")
                case .ready: content
                }
            }
            .navigationTitle("Classifier")
            .toolbar {
                NavigationLink("Model card") { CardView(shown: shown) }
                NavigationLink("Check") { CheckView(shown: shown) }
            }
        }
        .task { await shown.load() }
        .onChange(of: chosen) {
            guard let item = chosen else { return }
            chosen = nil
            Task { await shown.show(await PhotoReader.read(item)) }
        }
        .onChange(of: role) { Task { await shown.choose(role) } }
        .onChange(of: units) { Task { await shown.load(units) } }
        .onChange(of: phase) { if phase != .active { shown.stopCamera() } }
    }

    @ViewBuilder private var content: some View {
        if let notice = shown.notice {
            Section {
                Label(notice, systemImage: "exclamationmark.triangle")
                if shown.needsSettings {
                    Button("Open the app's settings") { openURL(URL(string: UIApplication.openSettingsURLString)!) }
                }
            }
        }
        Section {
            if let image = shown.picture?.image {
                Image(decorative: image, scale: 1).resizable().scaledToFit().frame(maxHeight: 320)
                    .accessibilityLabel("The picture that the model sees")
            }
            HStack {
                Button(shown.isLive ? "Stop" : "Camera", systemImage: "camera") {
                    if shown.isLive { shown.stopCamera() } else { Task { await shown.startCamera() } }
                }
                .buttonStyle(.borderedProminent)
                PhotosPicker("Photo", selection: $chosen, matching: .images).buttonStyle(.bordered)
            }
        }
        Section {
            ForEach(shown.answers) { AnswerRow(answer: $0) }
            Text(figures).font(.footnote).monospacedDigit()
            if let state = shown.conditions { Text(StateWords.of(state)).font(.footnote) }
        }
        if shown.roles.count > 1 {
            Section("Which model answers") {
                Picker("Which model answers", selection: $role) {
                    Text("Dense").tag(Role.dense)
                    Text("Pruned").tag(Role.pruned)
                }
                .pickerStyle(.segmented)
            }
        }
        Section("Runs on") {
            Picker("Core ML may use", selection: $units) {
                ForEach(ComputeUnits.allCases, id: \.self) { Text($0.label) }
            }
            Text(shown.placement?.words ?? "Core ML does not tell what runs where.").font(.footnote)
        }
        if !shown.bought.isEmpty {
            Section("What pruning bought") {
                ForEach(shown.bought) { row in
                    LabeledContent(row.id, value: row.gain)
                    Text("dense \(row.dense), pruned \(row.pruned)").font(.footnote)
                }
                if let doubt = shown.boughtDoubt { Text("The time is a rough one: \(doubt).").font(.footnote) }
            }
        }
        Text("\(shown.runtime), on this phone alone").font(.footnote)
    }

    private var figures: String {
        let p50 = shown.p50Ms.map { "p50 \(Format.milliseconds($0))" }
        let p90 = shown.p90Ms.map { "p90 \(Format.milliseconds($0))" }
        let rate = shown.picturesPerSecond.map { "\(Format.digits($0)) pictures a second" }
        return [p50, p90, rate].compactMap { $0 }.joined(separator: ", ")
    }
}

struct AnswerRow: View {
    let answer: Answer

    var body: some View {
        VStack(alignment: .leading) {
            LabeledContent(answer.label, value: Format.percent(answer.share))
            ProgressView(value: answer.share)
        }
        .accessibilityElement(children: .ignore)
        .accessibilityLabel("\(answer.label), \(Format.percent(answer.share))")
    }
}

enum StateWords {
    static func of(_ state: Conditions) -> String {
        let heat = "Thermal state: \(state.thermal?.word ?? "unknown")"
        let power = state.lowPower.map { "low-power mode: \($0 ? "on" : "off")" }
        return [heat, power, state.battery.map { "battery: \($0)" }].compactMap { $0 }.joined(separator: ", ")
    }
}
