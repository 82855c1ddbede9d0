import ClassifierKit
import SwiftUI

@main
struct ClassifierApp: App {
    @State private var shown = Classifier(
        models: Bundled(), engine: CoreMlEngine(), camera: PhoneCamera(), host: Phone())

    var body: some Scene {
        WindowGroup {
            if let job = Jobs.asked {
                JobView(id: job)
            } else {
                MainView(shown: shown)
            }
        }
    }
}
