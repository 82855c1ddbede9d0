/** The three views; the address holds which one is open, so that going back works. */

const VIEWS = ["classify", "check", "model"];

export function showViews(): void {
  // By its address alone the link would be a fourth view.
  document.querySelector(".skip")!.addEventListener("click", (event) => {
    event.preventDefault();
    document.getElementById("main")!.focus();
  });
  const open = () => {
    const wanted = location.hash.slice(1);
    const view = VIEWS.includes(wanted) ? wanted : VIEWS[0]!;
    document.body.dataset["view"] = view;
    for (const name of VIEWS) document.getElementById(name)!.hidden = name !== view;
    for (const link of document.querySelectorAll("nav a")) {
      if (link.getAttribute("href") === `#${view}`) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    window.scrollTo(0, 0);
  };
  window.addEventListener("hashchange", open);
  open();
}
