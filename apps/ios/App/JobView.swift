import ClassifierKit
import SwiftUI

/// Jobs that a computer has put into Documents: `--job ID` as a launch argument does one. See targets/devices/xcode.py.
enum Jobs {
    static var asked: String? {
        let arguments = ProcessInfo.processInfo.arguments
        guard let place = arguments.firstIndex(of: "--job"), place + 1 < arguments.count else { return nil }
        let id = arguments[place + 1]
        return id.allSatisfy({ $0.isHexDigit }) && !id.isEmpty ? id : nil
    }

    static func folder(_ id: String) -> URL {
        URL.documentsDirectory.appending(path: "jobs").appending(path: id)
    }

    /// Do it and leave result.json, or error.json, there. What is shown at the end.
    static func run(_ id: String, _ tell: @escaping @Sendable (String) -> Void) async -> String {
        let folder = folder(id)
        let others = try? FileManager.default.contentsOfDirectory(
            at: folder.deletingLastPathComponent(), includingPropertiesForKeys: nil)
        for other in others ?? [] where other.lastPathComponent != id { try? FileManager.default.removeItem(at: other) }
        do {
            let job = try Job(in: folder)
            let result = try await work(job, folder, CoreMlEngine(), Phone(), .all) { what, done, total in
                tell("\(what): \(done) of \(total)")
                let line = Json.object(["progress": .list([.text(what), .whole(done), .whole(total)])])
                try? write(line, folder.appending(path: "progress.json"))
            }
            try write(result.json, folder.appending(path: resultName))
            return "Done."
        } catch {
            let why = (error as? Fault)?.message ?? error.localizedDescription
            try? write(.object(["error": .text(why)]), folder.appending(path: "error.json"))
            return "It could not be done: \(why)"
        }
    }
}

struct JobView: View {
    let id: String
    @State private var said = ""

    var body: some View {
        VStack(spacing: 16) {
            Text("A computer measures on this phone. Leave this in front.").multilineTextAlignment(.center)
            Text(said).monospacedDigit()
        }
        .padding()
        .task {
            UIApplication.shared.isIdleTimerDisabled = true
            said = await Jobs.run(id) { words in Task { @MainActor in said = words } }
        }
    }
}
