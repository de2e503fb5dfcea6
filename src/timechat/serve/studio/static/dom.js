// Making nodes: text stays text.

export const at = (id) => document.getElementById(id);

export function make(name, properties = {}, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}

export function button(label, act, title, className = "quiet") {
  const node = make("button", { type: "button", className, title: title ?? label }, label);
  node.addEventListener("click", () => attempt(act));
  return node;
}

// Do it, and say so where it fails: no refusal may end in the console alone.
export async function attempt(act) {
  try {
    await act();
  } catch (error) {
    say(error.message, true);
  }
}

export function say(text, isFault = false) {
  at("status").textContent = text;
  at("status").classList.toggle("fault", isFault);
}
