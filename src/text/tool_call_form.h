// How a chat template wants the earlier tool calls of an assistant's message.
//
// Templates differ where the wire form leaves room: some print calls only if the content is none,
// some want the arguments as JSON text and some as an object. None says so; what a trial rendering
// shows decides. Thread-safety: pure functions.
#pragma once

#include <boost/json.hpp>

#include "text/chat_template.h"

namespace nibble::text {

struct ToolCallForm {
  bool null_content = false;    // where there is no text: null, else ""
  bool text_arguments = false;  // a string of JSON, else an object

  bool operator==(const ToolCallForm&) const = default;
};

// The first form that the template prints in full; {} if it prints none.
ToolCallForm ProbeToolCallForm(const ChatTemplate& chat_template,
                               const boost::json::object& special_tokens);

// Rewrites a message of the form {} with "tool_calls".
void ApplyToolCallForm(const ToolCallForm& form, boost::json::object* message);

}  // namespace nibble::text
